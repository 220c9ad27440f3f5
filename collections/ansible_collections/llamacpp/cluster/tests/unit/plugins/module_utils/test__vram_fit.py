# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Does it fit: sizes, arguments and words."""

from __future__ import annotations

import json

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils._memory import Estimate, Usage
from ansible_collections.llamacpp.cluster.plugins.module_utils._model import TensorGroup
from ansible_collections.llamacpp.cluster.plugins.module_utils._settings import HOST, Refused
from ansible_collections.llamacpp.cluster.plugins.module_utils._vram_fit import settings_of, size_bytes, vram_fit
from ansible_collections.llamacpp.cluster.tests.unit.builders import GIB, MIB, model

TOY = model(4)


class Pretended:
    """An estimator with figures that are easy to follow: a layer takes 1 GiB, its context 100 MiB."""

    def __init__(self) -> None:
        self.asked = []

    def __call__(self, facts, devices, settings):
        self.asked.append(settings)
        count = len(devices)
        layers = tuple(layer * count // 5 if count else HOST for layer in range(5))
        usages = tuple(
            Usage(device.name, layers.count(index) * GIB, layers.count(index) * 100 * MIB, 50 * MIB, 500 * MIB)
            for index, device in enumerate(devices)
        )
        host = Usage("host", 300 * MIB, 0, 20 * MIB, MIB)
        return Estimate(usages, host, layers, 4096, 4096 // max(settings.parallel, 1), True, False, True, ())


def device(name="CUDA0", **changes):
    return dict({"name": name, "kind": "cuda", "total": "8 GiB", "compute_capability": "9.0"}, **changes)


def fit(devices, **given):
    return vram_fit(given.pop("gguf", TOY), devices, estimator=given.pop("estimator", Pretended()), **given)


def test_it_fits():
    found = fit([device()])
    (first,) = found["devices"]
    assert {key: first[key] for key in ("name", "model", "context", "compute", "overhead")} == {
        "name": "CUDA0",
        "model": 5 * GIB,
        "context": 500 * MIB,
        "compute": 50 * MIB,
        "overhead": 500 * MIB,
    }
    assert first["total"] == 5 * GIB + 1050 * MIB
    assert first["free_after"] == 3 * GIB - 1050 * MIB
    assert (found["fits"], first["fits"], first["layers"], found["layers"]) == (True, True, 5, ["CUDA0"] * 5)
    assert "CUDA0 is the fullest, with 6.0 GiB of 8.0 GiB" in found["explanation"]
    assert found["host"]["total"] == 321 * MIB and found["host"]["free"] is None


def test_the_margin_decides_at_the_edge():
    exactly = 5 * GIB + 1050 * MIB
    assert fit([device(total=exactly)], margin=0)["fits"]
    assert not fit([device(total=exactly - 1)], margin=0)["fits"]
    assert fit([device(total=exactly + 256 * MIB)])["fits"]
    assert not fit([device(total=exactly + 256 * MIB - 1)])["fits"]


def test_free_memory_counts_and_not_all_of_it():
    assert not fit([device(total="24 GiB", free="5 GiB")])["fits"]


def test_what_is_missing_is_said():
    found = fit([device(total="6 GiB"), device("CUDA1", total="1 GiB")])
    assert not found["fits"]
    assert [item["fits"] for item in found["devices"]] == [True, False]
    assert "CUDA1 lacks 2.0 GiB (it needs 2.7 GiB" in found["explanation"]
    assert "Most of it is weights" in found["explanation"]


def test_memory_nobody_knows_is_not_checked():
    found = fit([{"name": "CUDA0", "kind": "cuda"}])
    assert found["fits"]
    assert found["devices"][0]["free_after"] is None
    assert "no device says how much" in found["explanation"]


def test_the_memory_of_the_host_is_checked_where_it_is_given():
    small = {"name": "CPU", "kind": "cpu", "total": "500 MiB"}
    found = vram_fit(TOY, [small], ctx_size=256)
    assert not found["fits"]
    assert (
        found["host"]["total"]
        == found["devices"][0]["total"]
        == found["devices"][0]["model"] + sum(found["devices"][0][key] for key in ("context", "compute", "overhead"))
    )
    assert found["args"][:4] == ["--device", "none", "--n-gpu-layers", "0"]
    assert set(found["layers"]) == {"host"}


def test_the_result_is_plain_data_and_takes_plain_data():
    found = fit([device()], gguf=json.loads(json.dumps(TOY.as_dict())))
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, ["--device", "CUDA0", "--split-mode", "layer", "--n-gpu-layers", "5", "--fit", "off"]),
        ({"gpu_layers": "3"}, ["--n-gpu-layers", "3"]),
        ({"ctx_size": 8192, "parallel": 2}, ["--ctx-size", "8192", "--parallel", "2", "--no-kv-unified"]),
        ({}, ["--ctx-size", "4096", "--parallel", "1"]),
        ({"parallel": -1}, ["--parallel", "4", "--kv-unified"]),
        ({"kv_unified": True}, ["--kv-unified"]),
        ({"cache_type_k": "q8_0"}, ["--cache-type-k", "q8_0", "--cache-type-v", "f16"]),
        ({"cpu_moe": True, "n_cpu_moe": 3}, ["--flash-attn", "on", "--cpu-moe"]),
        ({"n_cpu_moe": 3}, ["--n-cpu-moe", "3"]),
        ({"swa_full": True, "no_kv_offload": True}, ["--swa-full", "--no-kv-offload"]),
        ({"paths": {"model": "/m.gguf"}}, ["--model", "/m.gguf", "--device"]),
    ],
)
def test_arguments(given, wanted):
    words = " ".join(fit([device()], **given)["args"])
    assert " ".join(wanted) in words


def test_a_split_is_said_as_the_layers_of_each():
    words = fit([device(), device("CUDA1")])["args"]
    assert words[words.index("--tensor-split") + 1] == "3,2"
    words = fit([device(), device("CUDA1")], tensor_split="2,1")["args"]
    assert words[words.index("--tensor-split") + 1] == "2,1"


def test_workers_are_said_before_the_devices_and_once():
    workers = [
        {"name": "RPC%d" % index, "kind": "rpc", "total": "8 GiB", "host": host}
        for index, host in enumerate(["10.0.0.2:50052", "10.0.0.2:50052", "10.0.0.3:50052"])
    ]
    words = fit(workers)["args"]
    assert words[:4] == ["--rpc", "10.0.0.2:50052,10.0.0.3:50052", "--device", "RPC0,RPC1,RPC2"]
    # An address without a port is no address of a worker.
    assert "--rpc" not in fit([dict(workers[0], host="node2")])["args"]


def test_a_draft_model_shares_devices_and_context():
    pretended = Pretended()
    found = fit(
        [device(total="24 GiB")],
        draft=model(2, name="small"),
        draft_gpu_layers=1,
        estimator=pretended,
        cache_type_k="q8_0",
        cache_type_v="q8_0",
        n_cpu_moe=2,
        ctx_size=512,
        paths={"draft": "/d.gguf"},
    )
    main, drafting = pretended.asked
    assert (main.draft_max, main.for_draft) == (3, False)
    assert (drafting.for_draft, drafting.gpu_layers, drafting.cache_type_k, drafting.ctx_size) == (True, 1, "f16", 512)
    assert (drafting.n_cpu_moe, drafting.draft_max) == (0, 0)
    (first,) = found["devices"]
    # One process: what it takes is counted once.
    assert (first["model"], first["overhead"]) == (10 * GIB, 500 * MIB)
    assert found["parts"]["draft"]["devices"][0]["total"] == 5 * GIB + 550 * MIB
    assert found["args"][-6:] == [
        "--spec-draft-model",
        "/d.gguf",
        "--spec-draft-ngl",
        "1",
        "--spec-draft-n-max",
        "3",
    ]


VISION = {
    "clip.vision.embedding_length": 1152,
    "clip.vision.feed_forward_length": 4304,
    "clip.vision.image_size": 896,
    "clip.vision.patch_size": 14,
}


def projector(**metadata):
    eyes = TensorGroup("v.blk.0.attn_q.weight", (), (1024, 1024), "F16", 2 * MIB)
    return model(1, architecture="clip", metadata=dict(VISION, **metadata), tensor_groups=(eyes,))


def test_a_projector_goes_to_the_first_gpu_of_the_machine():
    worker = {"name": "RPC0", "kind": "rpc", "total": "8 GiB"}
    found = fit([worker, device()], mmproj=projector())
    assert found["parts"]["mmproj"]["device"] == "CUDA0"
    assert found["devices"][1]["model"] == 2 * GIB + 2 * MIB
    # 4096 patches of 1152 numbers, several times over.
    assert 7 * 4 * 4096 * 1152 < found["parts"]["mmproj"]["compute"] < GIB
    assert not found["exact"]


def test_where_a_projector_goes_is_said():
    worker = {"name": "RPC0", "kind": "rpc", "total": "8 GiB"}

    def said(devices):
        words = fit(devices, mmproj=projector(), paths={"mmproj": "/m/eyes.gguf"})["args"]
        return words[words.index("--mmproj") : words.index("--mmproj") + 4]

    # Left out, it would be the first of --device, the worker's.
    assert said([worker, device()]) == ["--mmproj", "/m/eyes.gguf", "--mmproj-device", "CUDA0"]
    assert said([dict(worker, backend="cuda")])[-1] == "RPC0"
    assert said([worker])[-1] == "none"


def test_pictures_of_any_size_need_more():
    fixed = fit([device()], mmproj=projector())["parts"]["mmproj"]
    free = fit([device()], mmproj=projector(**{"clip.vision.spatial_merge_size": 2}))["parts"]["mmproj"]
    assert free["compute"] > fixed["compute"]


def test_a_model_is_no_projector():
    with pytest.raises(Refused, match="not a projector"):
        fit([device()], mmproj=TOY)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (1024, 1024),
        ("1024", 1024),
        ("24 GiB", 24 * GIB),
        ("24g", 24 * 10**9),
        ("1.5 GiB", GIB * 3 // 2),
        ("80GB", 80 * 10**9),
        ("512 MiB", 512 * MIB),
    ],
)
def test_sizes(text, size):
    assert size_bytes(text, "total") == size


@pytest.mark.parametrize("text", ["much", "-1", -1, True, None, "1 GiBi"])
def test_no_sizes(text):
    with pytest.raises(Refused, match="total"):
        size_bytes(text, "total")


def test_settings_from_templates():
    found = settings_of(
        {"ctx_size": "4096", "gpu_layers": "12", "tensor_split": [3, 1], "flash_attn": True, "parallel": None}
    )
    assert (found.ctx_size, found.gpu_layers, found.tensor_split, found.flash_attn) == (4096, 12, (3.0, 1.0), "on")
    assert (found.parallel, settings_of({"gpu_layers": "all"}).gpu_layers) == (1, "all")


@pytest.mark.parametrize(
    ("devices", "given", "setting"),
    [
        ([device(kind="tpu")], {}, "devices[0].kind"),
        ([device(), device(name="")], {}, "devices[1]"),
        ([device(backend="rpc")], {}, "devices[0].backend"),
        ([device(vram=1)], {}, "devices[0]"),
        ([device(total="lots")], {}, "devices[0].total"),
        ([device()], {"margin": -1}, "margin"),
        ([device()], {"n_gpu_layers": 3}, "n_gpu_layers"),
        ([device()], {"ctx_size": "many"}, "ctx_size"),
        ([device()], {"cpu_moe": "perhaps"}, "cpu_moe"),
        ([device()], {"tensor_split": "a,b"}, "tensor_split"),
        ([device()], {"gguf": {"version": 3}}, "gguf"),
        ([device()], {"draft": []}, "draft"),
    ],
)
def test_what_is_refused(devices, given, setting):
    with pytest.raises(Refused) as caught:
        fit(devices, **given)
    assert caught.value.setting == setting


def test_the_real_estimator_is_the_default():
    found = vram_fit(TOY, [device()], ctx_size=4096)
    (first,) = found["devices"]
    assert (first["model"], first["context"]) == (5 * 100 * MIB, 4 * 4096 * 2 * 512 * 2)
    # The toy is of no architecture that llama.cpp knows.
    assert not found["exact"] and "estimate on the safe side" in found["explanation"]
