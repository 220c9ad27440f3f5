"""The lab's decisions, without a lab."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from llamalab import cli, inventory, limits, names, network, node, preflight, roots, supervise
from llamalab.names import Lab, LabError
from llamalab.record import LabRecord, NodeRecord

REPOSITORY = Path(__file__).resolve().parents[2]


def test_labs_do_not_share_addresses_or_names() -> None:
    seen: set[str] = set()
    for name in names.LABS:
        lab = Lab(name)
        mine = {lab.switch_namespace, lab.node_namespace("node1"), lab.unit("node2")}
        for net in names.NETWORKS:
            mine |= {lab.host_link(net), lab.prefix(net), lab.address("node1", net), lab.mac("node1", net)}
        assert not mine & seen
        seen |= mine


def test_addresses_are_those_of_the_house_plan() -> None:
    assert Lab("lab").address("node1", "management") == "10.213.0.11"
    assert Lab("test").address("node3", "fabric") == "10.214.1.13"
    assert Lab("bench").host_address("management") == "10.216.0.1"


def test_interface_names_fit_the_kernel() -> None:
    last = f"node{names.MAX_NODES}"
    for net in names.NETWORKS:
        assert all(len(Lab(name).host_link(net)) <= 15 for name in names.LABS)
        assert len(names.port(last, net)) <= 15


def test_hardware_addresses_differ_between_nodes() -> None:
    lab = Lab("lab")
    macs = {lab.mac(node, net) for node in names.node_names(200) for net in names.NETWORKS}
    assert len(macs) == 400


@pytest.mark.parametrize("word", ["node0", "node201", "node1x", "Node1", "node01", ""])
def test_a_name_that_is_no_node_is_named(word: str) -> None:
    with pytest.raises(LabError, match="is no node name"):
        names.node_number(word)


def test_an_unknown_lab_is_refused_with_the_known_ones() -> None:
    with pytest.raises(LabError, match="lab, test, molecule"):
        Lab("mine")


@pytest.mark.parametrize("count", [0, -1, 201])
def test_a_lab_has_1_to_200_nodes(count: int) -> None:
    with pytest.raises(LabError, match="1 to 200"):
        names.node_names(count)


def test_suites() -> None:
    assert names.parse_suites(["node2=bullseye", "node3=trixie"]) == {"node2": "bullseye", "node3": "trixie"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["node2"], "write NODE=SUITE"),
        (["node2=buster"], "bookworm, bullseye, trixie"),
        (["x=bullseye"], "is no node name"),
        (["node2=bullseye", "node2=trixie"], "two suites"),
    ],
)
def test_bad_suites(words: list[str], message: str) -> None:
    with pytest.raises(LabError, match=message):
        names.parse_suites(words)


def test_rates() -> None:
    assert names.rate_bits("1gbit") == 10**9
    assert names.rate_bits("2.5mbit") == 2_500_000


@pytest.mark.parametrize("rate", ["1", "fast", "1gb", "-1mbit", "1kbit"])
def test_bad_rates(rate: str) -> None:
    with pytest.raises(LabError, match="--rate"):
        names.rate_bits(rate)


def test_the_record_survives_a_round_trip() -> None:
    record = LabRecord(
        "test",
        namespaces=["lclab-test"],
        nodes={f"node{k}": NodeRecord("bookworm", "bookworm-1", "ab", cut=["fabric"]) for k in (1, 2, 10)},
        shapes={"fabric": "1gbit"},
        extra_inventory="/somewhere/more.yml",
    )
    again = LabRecord.loads(record.dumps(), "record.json")
    assert again == record
    assert list(again.nodes) == ["node1", "node2", "node10"]


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"schema": 99, "name": "lab"}', '{"schema": 1, "name": "lab", "nodes": {"node1": {}}}']
)
def test_a_record_that_cannot_be_read_is_named(text: str) -> None:
    with pytest.raises(LabError, match=r"the\.json"):
        LabRecord.loads(text, "the.json")


MOUNTINFO_HYBRID = """\
54 107 0:48 / /sys/fs/cgroup rw shared:14 - tmpfs tmpfs rw
63 54 0:38 / /sys/fs/cgroup/unified rw shared:23 - cgroup2 cgroup2 rw
64 54 0:37 / /sys/fs/cgroup/systemd rw shared:24 - cgroup cgroup rw,name=systemd
65 54 0:39 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
"""


def test_cgroup_hierarchies() -> None:
    unified, named = Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup/systemd")
    assert supervise.parse_hierarchies(MOUNTINFO_HYBRID) == [unified, named]
    pure = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
    assert supervise.parse_hierarchies(pure) == [Path("/sys/fs/cgroup")]
    assert supervise.parse_hierarchies("54 1 0:4 / / rw - ext4 /dev/vda rw\n") == []


def test_pids_in_nested_namespaces() -> None:
    assert supervise.parse_namespaced_pids("Name:\tsystemd\nNSpid:\t22538\t1\nNSpgid:\t22538\t1\n") == [22538, 1]
    assert supervise.parse_namespaced_pids("Name:\tx\n") == []


def addresses(device: str, address: str, prefix: int) -> str:
    entry = {"family": "inet", "local": address, "prefixlen": prefix}
    return json.dumps([{"ifname": device, "addr_info": [entry]}])


def test_an_address_range_in_use_is_refused() -> None:
    with pytest.raises(LabError, match=r"10\.214\.0\.0/24.*eth7.*10\.214\.0\.5/24"):
        network.check_addresses(Lab("test"), addresses("eth7", "10.214.0.5", 24), "[]")
    routes = json.dumps([{"dev": "tun0", "dst": "10.214.0.0/16"}])
    with pytest.raises(LabError, match=r"10\.214\.0\.0/24.*tun0.*10\.214\.0\.0/16"):
        network.check_addresses(Lab("test"), "[]", routes)


def test_other_labs_and_wide_networks_are_no_obstacle() -> None:
    lab = Lab("test")
    routes = json.dumps(
        [
            {"dst": "default", "dev": "eth0"},
            {"dst": "10.0.0.0/8", "dev": "tun0"},
            {"dst": "10.214.0.0/24", "dev": lab.host_link("management")},
            {"dst": "10.212.0.1", "dev": Lab("lab").host_link("management")},
            {"type": "blackhole", "dst": "192.0.2.0/24"},
        ]
    )
    network.check_addresses(lab, addresses("eth0", "192.0.2.7", 24), routes)


def test_the_committed_inventory_is_the_one_that_the_lab_writes() -> None:
    written = inventory.inventory(Lab("lab"), names.node_names(3), builders=["node1"])
    committed = (REPOSITORY / "inventories" / "lab" / "hosts.yml").read_text()
    assert yaml.safe_load(written) == yaml.safe_load(committed)


def test_the_inventory_of_further_nodes_has_no_builder() -> None:
    data = yaml.safe_load(inventory.inventory(Lab("lab"), ["node4"], builders=[]))
    assert list(data) == ["llamacpp_nodes"]
    assert data["llamacpp_nodes"]["hosts"]["node4"]["ansible_host"] == "10.213.0.14"


def test_known_hosts_name_every_address() -> None:
    text = inventory.known_hosts(Lab("lab"), {"node1": "ssh-ed25519 AAAA node1\n"})
    assert text == "node1,10.213.0.11,10.213.1.11 ssh-ed25519 AAAA\n"


def test_roots_are_named_after_what_they_are_made_from(monkeypatch: pytest.MonkeyPatch) -> None:
    before = roots.key("bookworm")
    assert before.startswith("bookworm-")
    assert before != roots.key("bullseye")
    monkeypatch.setattr(roots, "PACKAGES", (*roots.PACKAGES, "vim"))
    assert roots.key("bookworm") != before


def test_the_simulated_el_host_is_made_from_its_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    recipe = roots.recipe("simulated-el8")
    assert recipe.debian == "bookworm"
    assert "python3-apt" not in recipe.packages
    assert {"customize.sh", "redhat-release", "gcc-toolset.spec"} <= {path.name for path in recipe.files}
    shutil.copytree(roots.EL8_DIRECTORY, tmp_path / "copy")
    monkeypatch.setattr(roots, "EL8_DIRECTORY", tmp_path / "copy")
    assert roots.key("simulated-el8") == recipe.key
    with (tmp_path / "copy" / "specs" / "gcc.spec").open("a") as spec:
        spec.write("# changed\n")
    assert roots.key("simulated-el8") != recipe.key


def test_progress_of_mmdebstrap() -> None:
    assert roots.phase("I: downloading packages with apt...") == "step 2 of 7, downloading packages"
    assert roots.phase("I: something else") is None


def test_missing_tools_are_named_by_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(preflight.TOOLS, "no-such-tool", "its-package")
    monkeypatch.setattr(preflight, "KEYRING", tmp_path / "absent.gpg")
    assert {"its-package", "debian-archive-keyring"} <= set(preflight.missing_packages())
    with pytest.raises(LabError, match=r"apt-get install .*its-package"):
        preflight.check(Lab("lab"), new_roots=0, new_nodes=0)


def test_a_full_disk_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "missing_packages", list)
    with pytest.raises(LabError, match=r"nodes' disks need .* GiB at /\S+, but .* GiB are free"):
        preflight.check(Lab("lab"), new_roots=0, new_nodes=10**9)


def test_limits_are_raised_and_never_lowered() -> None:
    assert limits.wanted(3, 8192) == 8192
    assert limits.wanted(24, 128) >= 24 * 7


def test_the_boot_script_passes_systemd_run_unharmed() -> None:
    """In the words of a command, systemd expands ${NAME} and turns $$ into $; the rest goes through as it is."""
    assert "${" not in node._BOOT
    assert "$$" not in node._BOOT
    assert not node._BOOT.startswith("$")


def test_status_for_people() -> None:
    assert "down" in cli.show({"lab": "lab", "up": False})
    entry = {"state": "frozen", "suite": "bookworm", "management": "a", "fabric": "b", "cut": ["fabric"]}
    text = cli.show(
        {"lab": "lab", "up": True, "inventory": "i", "shapes": {"fabric": "1gbit"}, "nodes": {"node1": entry}}
    )
    assert "frozen" in text
    assert "cut off: fabric" in text
    assert "limited to 1gbit" in text


def test_without_root_it_asks_sudo(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[str]] = []
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setattr("os.execv", lambda _path, argv: ran.append(argv))
    monkeypatch.setattr("sys.argv", ["tests/lab/labctl.py", "status"])
    monkeypatch.setattr("shutil.which", lambda _name: "/usr/bin/sudo")
    monkeypatch.setenv("http_proxy", "http://192.0.2.1:3128")
    cli.become_root(["status"])
    assert ran[0][0] == "/usr/bin/sudo"
    assert "http_proxy=http://192.0.2.1:3128" in ran[0]
    assert ran[0][-2:] == [str(Path("tests/lab/labctl.py").absolute()), "status"]
    monkeypatch.setattr("shutil.which", lambda _name: None)
    with pytest.raises(LabError, match="run this command as root"):
        cli.become_root(["status"])


@pytest.fixture
def action() -> ModuleType:
    spec = importlib.util.spec_from_file_location("lab_action", Path(__file__).parent / "plugins/action/lab.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_task_calls_labctl(action: ModuleType) -> None:
    arguments = {"name": "test", "state": "up", "nodes": 2, "suites": {"node2": "trixie"}, "owner_pid": None}
    words = action.command(arguments, check=True)
    parsed = cli.parser().parse_args(words[2:])
    assert (parsed.name, parsed.command, parsed.nodes, parsed.suite) == ("test", "up", 2, ["node2=trixie"])
    assert parsed.check
    assert parsed.json
    down = cli.parser().parse_args(action.command({"name": "lab", "state": "down"}, check=False)[2:])
    assert (down.command, down.check) == ("down", False)
