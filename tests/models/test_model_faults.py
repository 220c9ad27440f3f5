"""What can go wrong while a model comes to its nodes: nothing corrupt is ever named, and a second run finishes.

Every test begins with nodes that run the model and whose stores are gone, and ends with nodes that have it.
"""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator

import pytest
from driver import ROOT
from fixtures import LiveLab, lab_of
from modelsite import FETCHER, FILE, NAME, NODES, QUANT, REPO, STORE, ModelSite
from simulated_hub import SimulatedHub

pytestmark = [pytest.mark.lab]

MEGABYTES = 24
SECONDS = 12.0  # that a slow fetch takes; a look at how far it is takes half of one


@pytest.fixture(scope="module")
def live(request: pytest.FixtureRequest) -> Iterator[LiveLab]:
    """The lab ``models``."""
    with lab_of(request, "models", len(NODES), {"node2": "bullseye", "node3": "trixie"}) as lab:
        yield lab


@pytest.fixture(scope="module")
def deployed(live: LiveLab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelSite]:
    """Three heads that run the model."""
    work = tmp_path_factory.mktemp("models")
    model, other = work / "dice.gguf", work / "other.gguf"
    for path, size in ((model, MEGABYTES), (other, MEGABYTES // 2)):
        command = [sys.executable, str(ROOT / "demo" / "make_model.py"), str(path), f"--megabytes={size}"]
        subprocess.run([*command, "--layers=6"], check=True)
    hub = SimulatedHub(live.lab.host_address("management"))
    hub.add(REPO, {FILE: model, "dice-Q4_0.gguf": other, "README.md": b"# Dice\n"})
    made = ModelSite(live, work, model, hub)
    made.finish()
    yield made
    hub.stop()


@pytest.fixture
def site(deployed: ModelSite) -> Iterator[ModelSite]:
    """The same without stores, and with a hub that is well; both again afterwards."""
    deployed.hub.heal()
    deployed.forget()
    yield deployed
    deployed.hub.heal()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_killed_at_any_byte(site: ModelSite, seed: int) -> None:
    share = random.Random(seed).uniform(0.1, 0.8)
    site.slowly(SECONDS)
    run = site.start_site()
    site.until_fetched(share)
    assert site.kill_fetch() > 0, f"nothing fetches at {share:.0%}"
    site.end(run).failed()
    site.assert_nothing_named()
    came = site.incoming(FETCHER)
    assert came > 0
    site.finish()
    # What came before was not asked for again.
    assert max(asked.first or 0 for asked in site.hub.gets()) >= came - (1 << 20)


def test_power_loss(site: ModelSite) -> None:
    site.slowly(SECONDS)
    run = site.start_site()
    site.until_fetched(0.5)
    site.lab.kill(FETCHER)
    site.end(run).failed()
    site.lab.start(FETCHER)
    site.assert_nothing_named()
    site.finish()


def test_killed_control_machine(site: ModelSite) -> None:
    """What fetches on the node may go on by itself; either way the next run ends well."""
    site.slowly(SECONDS)
    run = site.start_site()
    site.until_fetched(0.3)
    run.kill()
    run.communicate(timeout=60)
    site.assert_nothing_corrupt()
    site.finish()


def test_hub_gone_half_way(site: ModelSite) -> None:
    site.slowly(SECONDS)
    run = site.start_site()
    site.until_fetched(0.5)
    site.hub.stop()
    try:
        failed = site.end(run).failed()
    finally:
        site.hub.start()
    assert "run again to go on" in failed.output, failed.output[-3000:]
    site.assert_nothing_named()
    site.finish()
    # Half of it was there: what was sent since is less than all.
    assert 0 < site.hub.sent < site.size


def test_wrong_bytes(site: ModelSite) -> None:
    site.hub.fault("flip", at=site.size // 2, times=0)
    failed = site.site().failed()
    assert "has sha256" in failed.output, failed.output[-3000:]
    site.assert_nothing_named()
    site.finish()


def test_no_room_for_it(site: ModelSite) -> None:
    """Seen before the first byte of it is asked for."""
    site.shell(FETCHER, f"mkdir -p {STORE} && mount -t tmpfs -o size={MEGABYTES // 2}m tmpfs {STORE}")
    try:
        failed = site.site().failed()
        assert f"free disk of {FETCHER} for {STORE}" in failed.output, failed.output[-3000:]
        assert site.hub.sent < site.size // 2, "it was fetched all the same"
        site.assert_nothing_named()
    finally:
        site.shell(FETCHER, f"umount -l {STORE}")
    site.finish()


def test_a_disk_that_fills_up_meanwhile(site: ModelSite) -> None:
    site.shell(FETCHER, f"mkdir -p {STORE} && mount -t tmpfs -o size={2 * MEGABYTES}m tmpfs {STORE}")
    try:
        site.slowly(SECONDS)
        run = site.start_site()
        site.until_fetched(0.3)
        # Until it is full.
        site.shell(FETCHER, f"dd if=/dev/zero of={STORE}/filler bs=64k 2>/dev/null || true")
        failed = site.end(run).failed()
        assert "is full: free some space and run again" in failed.output, failed.output[-3000:]
        site.assert_nothing_named()
        site.shell(FETCHER, f"rm {STORE}/filler")
        site.finish()
    finally:
        site.shell(FETCHER, f"umount -l {STORE}")


def test_two_runs_at_once(site: ModelSite) -> None:
    """One fetches, the other waits for it; neither fails, and the bytes come once."""
    site.slowly(3 * SECONDS)
    one = site.start_site()
    site.until_fetched(0.2)
    two = site.start_site()
    first, second = site.end(one), site.end(two)
    first.succeeded()
    second.succeeded()
    assert site.hub.sent < 1.5 * site.size
    site.finish()


@pytest.mark.parametrize("victim", ["node1", "node3"])
def test_a_peer_that_dies_in_the_swarm(site: ModelSite, victim: str) -> None:
    """``node1`` has the model, the others get it. Those that live finish from each other, or say why they cannot."""
    site.lab.shape("8mbit")
    try:
        run = site.start_site(llamacpp_models_transport="swarm")
        site.until_swarming("node3", run)
        site.lab.kill(victim)
        site.end(run).failed()
    finally:
        site.lab.shape("none")
    if victim != FETCHER:
        assert site.names("node2") == [NAME]
    site.lab.start(victim)
    site.assert_nothing_corrupt()
    site.finish(llamacpp_models_transport="swarm")
    (planned,) = site.plan["models"].values()
    assert planned["transport"] == "swarm"


@pytest.mark.parametrize("spoil", ["rm {blob}", "truncate --size=1000 {blob}", "sed -i '1s/^GGUF/GGUE/' {blob}"])
def test_a_manifest_that_names_a_missing_or_broken_blob(site: ModelSite, spoil: str) -> None:
    site.finish()
    blob = site.shell("node2", f"ls {STORE}/blobs/*").strip()
    links = site.shell("node2", f"find {STORE}/names -samefile {blob}").split()
    # Replaced, not written into: llama.cpp runs from the file that it has open.
    site.shell("node2", f"cp {blob} {blob}.copy && mv {blob}.copy {blob} && ln -f {blob} {links[0]}")
    site.shell("node2", spoil.format(blob=blob))
    run = site.finish()
    assert run.changed["node2"] > 0


def test_a_quota_smaller_than_the_model(site: ModelSite) -> None:
    failed = site.site(llamacpp_models_quota="8 MiB").failed()
    assert "raise llamacpp_models_quota" in failed.output, failed.output[-3000:]
    assert site.hub.sent < site.size // 2, "it was fetched all the same"
    site.assert_nothing_named()
    site.finish()


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a//b", "a/./b", ".hidden", "a\x00b", "ü"])
def test_a_name_that_would_lead_elsewhere(site: ModelSite, name: str) -> None:
    before = {node: site.shell(node, "sha256sum /etc/passwd") for node in NODES}
    failed = site.site(llamacpp_instances=site.instances(name=name)).failed()
    assert "llamacpp_instances[0].model.name" in failed.output, failed.output[-3000:]
    assert set(failed.changed.values()) <= {0}, "something was changed before the name was looked at"
    assert {node: site.shell(node, "sha256sum /etc/passwd") for node in NODES} == before
    site.assert_nothing_named()


def test_a_repository_whose_files_would_lead_elsewhere(site: ModelSite) -> None:
    site.hub.add("owner/evil-GGUF", {f"../../../evil-{QUANT}.gguf": site.model})
    site.site(llamacpp_instances=site.instances(repo="owner/evil-GGUF"))
    found = site.shell(FETCHER, f"find / -xdev -name 'evil-*' -not -path '{STORE}/*' 2>/dev/null || true")
    assert found == ""
    site.assert_nothing_corrupt()
    site.forget()
    site.finish()


def test_a_repository_without_that_quantisation(site: ModelSite) -> None:
    failed = site.site(llamacpp_instances=site.instances(quant="Q6_K")).failed()
    for word in (REPO, "Q6_K", "Q4_0", QUANT):
        assert word in failed.output, failed.output[-3000:]
    site.assert_nothing_named()
    site.finish()


def test_a_run_where_all_is_in_place_changes_and_fetches_nothing(site: ModelSite) -> None:
    site.finish()
    site.hub.heal()
    run = site.site().succeeded()
    assert set(run.changed.values()) == {0}, run.output[-4000:]
    assert site.hub.sent < site.size // 2, "the model was fetched again"
