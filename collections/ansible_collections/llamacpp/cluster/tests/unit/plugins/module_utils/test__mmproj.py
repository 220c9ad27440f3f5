# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A projector that lies beside a model is served, and has its room in the plan."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils._model import TensorGroup
from ansible_collections.llamacpp.cluster.plugins.module_utils._plan import make_plan
from ansible_collections.llamacpp.cluster.plugins.module_utils._problem import PlanError
from ansible_collections.llamacpp.cluster.plugins.module_utils._sources import Found, HubFile
from ansible_collections.llamacpp.cluster.plugins.modules.cluster_plan import read_model
from ansible_collections.llamacpp.cluster.tests.unit.builders import (
    GIB,
    MIB,
    accept,
    device,
    instance,
    model,
    nodes,
)

EYES = "/srv/models/mmproj-F16.gguf"
PATH = "/var/lib/llamacpp/models/names/toy/mmproj-F16.gguf"
MODEL = {"path": "/srv/models/toy.gguf", "beside": [EYES]}
VISION = {
    "clip.vision.embedding_length": 1152,
    "clip.vision.feed_forward_length": 4304,
    "clip.vision.patch_size": 14,
    "clip.vision.image_size": 896,
    "clip.vision.attention.head_count": 16,
}
GPU = device("cuda", 8)


def projector(size=512 * MIB, **changes):
    group = TensorGroup("v.blk.0.attn_q.weight", (), (1024, size // 2048), "F16", size)
    return model(1, architecture="clip", metadata=VISION, tensor_groups=(group,), **changes)


def planned(declared=None, beside=None, gpus=(GPU,), facts=None, **changes):
    """Return the one instance of a plan; ``beside``: what was found of the projector."""
    own = instance(model=declared or MODEL, **{"nodes": ["node1"], **changes})
    found = Found(facts or model(), projector=Found(projector()) if beside is None else beside)
    plan = make_plan(accept(own), nodes(devices=list(gpus)), {"demo": {"": found}})
    return plan["instances"][0]


def problem(**changes):
    with pytest.raises(PlanError) as caught:
        planned(**changes)
    return str(caught.value)


def value(arguments, flag):
    assert arguments.count(flag) == 1
    return arguments[arguments.index(flag) + 1]


def overheads(found):
    return [share["overhead_bytes"] for share in found["devices"]] + [found["host_memory"]["overhead_bytes"]]


def without():
    return {"path": "/srv/models/toy.gguf"}


def test_it_is_served_and_has_room_on_the_gpu():
    found, plain = planned(), planned(without())
    assert value(found["args"], "--mmproj") == PATH
    assert value(found["args"], "--mmproj-device") == "CUDA0"
    added = found["projector"]
    assert (added["path"], added["device"], added["model_bytes"]) == (PATH, "CUDA0", 512 * MIB)
    # 4096 patches of 1152 numbers, several times over.
    assert 7 * 4 * 4096 * 1152 < added["compute_bytes"] < GIB
    more = [one - other for one, other in zip(overheads(found), overheads(plain))]
    assert more == [added["model_bytes"] + added["compute_bytes"], 0]
    assert found["devices"][0]["free_bytes"] == plain["devices"][0]["free_bytes"] - more[0]
    assert "mmproj-F16.gguf takes 512 MiB of weights" in found["notes"][-1]
    assert (plain["projector"], "--mmproj" in plain["args"]) == (None, False)


def test_without_flash_attention_it_holds_the_scores_of_every_head():
    with_it, without_it = (planned(flash_attention=word)["projector"]["compute_bytes"] for word in ("auto", "off"))
    # 4096 patches, 16 heads, single precision.
    assert without_it - with_it == 16 * 4 * 4096 * 4096
    assert planned(flash_attention="on")["projector"]["compute_bytes"] == with_it


def test_eyes_and_ears_have_buffers_of_their_own():
    ears = {"clip.audio.embedding_length": 1280, "clip.audio.feed_forward_length": 5120, "clip.audio.num_mel_bins": 128}

    def buffers(metadata):
        read = replace(projector(), metadata=metadata)
        return planned(beside=Found(read))["projector"]["compute_bytes"]

    assert buffers({**VISION, **ears}) == buffers(VISION) + buffers(ears) > buffers(VISION)


def test_a_worker_does_not_get_it_while_the_head_has_a_gpu():
    found = planned(nodes=["node1", "node2", "node3"])
    assert value(found["args"], "--device").startswith("RPC0,")
    assert value(found["args"], "--mmproj-device") == "CUDA0"
    by_name = {share["device"]: share["overhead_bytes"] for share in found["devices"]}
    assert by_name["CUDA0"] >= by_name["RPC0"] + 512 * MIB


def test_a_head_without_a_gpu_keeps_it_in_memory():
    found, plain = planned(gpus=()), planned(without(), gpus=())
    assert value(found["args"], "--mmproj-device") == "none"
    assert overheads(found)[-1] - overheads(plain)[-1] > 512 * MIB


def test_layers_make_way_for_it():
    # As much as two GPUs of 12 GiB hold: half of it and the projector are too much for the first.
    facts, gpus = model(90, 230 * MIB), [device("cuda", 12, index=0), device("cuda", 12, index=1)]
    layers = [
        [share["n_layers"] for share in planned(declared, gpus=gpus, facts=facts, split_mode="layer")["devices"]]
        for declared in (without(), MODEL)
    ]
    assert layers[1][0] < layers[0][0]


def test_what_fits_only_without_it_is_refused():
    facts = model(64)
    assert planned(without(), facts=facts, gpu_layers="all")["gpu_layers"] == 65
    assert "process and projector" in problem(facts=facts, gpu_layers="all")


@pytest.mark.parametrize(
    ("changes", "seat", "said"),
    [
        ({"extra_args": ["--no-mmproj-offload"]}, "none", True),
        ({"extra_args": ["-mmdev", "CUDA1"]}, "CUDA1", True),
        ({"environment": {"LLAMA_ARG_MMPROJ_OFFLOAD": "off"}}, "none", True),
        ({"environment": {"MTMD_BACKEND_DEVICE": "CUDA1"}}, "CUDA1", True),
        ({"extra_args": ["--mmproj-offload"]}, "CUDA0", False),
    ],
)
def test_its_device_may_be_named(changes, seat, said):
    gpus = [device("cuda", 8, index=0), device("cuda", 8, index=1)]
    found = planned(gpus=gpus, tensor_split=[1, 1], **changes)
    assert found["projector"]["device"] == seat
    assert value(found["args"], "--mmproj") == PATH
    # The operator's own word stays alone.
    assert ("--mmproj-device" in found["args"]) is not said
    taken = dict(zip([share["device"] for share in found["devices"]] + ["none"], overheads(found)))
    assert max(taken, key=taken.get) == seat


def test_a_device_of_somebody_else_is_said():
    found = planned(extra_args=["--mmproj-device", "CUDA7"])
    assert found["notes"][-1] == "CUDA7 is no device of this instance: what the projector takes there is not planned"


@pytest.mark.parametrize(
    "own",
    [
        {"extra_args": ["--mmproj", "/srv/other.gguf"]},
        {"extra_args": ["-mm", "/srv/other.gguf"]},
        {"extra_args": ["--mmproj_url", "https://h/other.gguf"]},
        {"extra_args": ["--no-mmproj"]},
        {"environment": {"LLAMA_ARG_MMPROJ": "/srv/other.gguf"}},
        {"environment": {"LLAMA_ARG_MMPROJ_AUTO": "0"}},
    ],
)
@pytest.mark.parametrize("beside", [[EYES], [EYES, "/srv/models/mmproj-BF16.gguf"]])
def test_own_words_win(own, beside):
    found = planned(dict(MODEL, beside=beside), **own)
    assert found["projector"] is None
    assert [word for word in found["args"] if "mmproj" in word] == [
        word for word in own.get("extra_args", []) if "mmproj" in word
    ]
    assert overheads(found) == overheads(planned(without()))


def test_two_are_one_too_many():
    said = problem(declared=dict(MODEL, beside=[EYES, "/srv/models/mmproj-BF16.gguf"]))
    assert said == (
        "llamacpp_instances[0].model.beside = mmproj-F16.gguf, mmproj-BF16.gguf: llama-server takes one projector: "
        "keep one, or name it yourself, extra_args: [--mmproj, PATH]"
    )


def test_a_model_is_no_projector():
    said = problem(beside=Found(model()))
    assert "model.beside = mmproj-F16.gguf: it is no projector, but toy; name the projector, or leave it out" in said


def hub_plan(beside, quants=("Q8_0",), read=None):
    """Return the plan of a model of a repository with these files beside it."""
    own = instance(model={"repo": "owner/toy", "beside": ["mmproj*"]}, nodes=["node1"])
    found = {
        quant: Found(model(), "", (HubFile("toy-%s.gguf" % quant, 1, "aa"),), tuple(beside), "c0ffee", read)
        for quant in quants
    }
    return make_plan(accept(own), nodes(devices=[GPU]), {"demo": found})["instances"][0]


def test_one_of_a_repository_without_a_header_takes_what_its_file_does():
    eyes = HubFile("gguf/mmproj-F16.gguf", 700 * MIB, "bb", "mmproj")
    found = hub_plan([eyes], read=Found(None, "the hub is busy"))
    assert value(found["args"], "--mmproj") == "/var/lib/llamacpp/models/names/owner/toy/Q8_0/mmproj-F16.gguf"
    assert found["devices"][0]["overhead_bytes"] - planned(without())["devices"][0]["overhead_bytes"] == 700 * MIB
    assert found["notes"][-1] == (
        "the header of the projector mmproj-F16.gguf was not read: the 700 MiB of the file are planned for it "
        "(the hub is busy)"
    )


def test_several_of_a_repository_are_refused_once():
    eyes = [HubFile("mmproj-%s.gguf" % kind, MIB, "bb", "mmproj") for kind in ("F16", "BF16")]
    with pytest.raises(PlanError) as caught:
        hub_plan(eyes, ("Q8_0", "Q4_0"))
    assert [item.variable for item in caught.value.problems] == ["llamacpp_instances[0].model.beside"]


def test_a_result_of_the_hub_tells_of_it():
    column = {"files": ["toy-Q8_0.gguf"], "sizes": [1], "sha256": ["aa"], "parts": [["toy-Q8_0.gguf"]]}
    quantisation = dict(column, gguf=model().as_dict())
    eyes = {"name": "mmproj.gguf", "size": 5, "sha256": "bb", "role": "mmproj", "gguf": projector().as_dict()}
    tokenizer = {"name": "tokenizer.json", "size": 1, "sha256": None, "role": "tokenizer"}
    found = Found.from_hub({"commit": "c0ffee", "beside": [tokenizer, eyes]}, quantisation)
    assert found.projector is not None
    assert found.projector.facts.architecture == "clip"
    failed = dict({key: eyes[key] for key in eyes if key != "gguf"}, msg="cut off")
    assert Found.from_hub({"commit": "c0ffee", "beside": [failed]}, quantisation).projector.error == "cut off"


def test_a_static_plan_serves_it_without_knowing_its_size():
    own = instance(model=MODEL, nodes=["node1"])
    declared = accept(own, static=True, nodes={"node1": {"devices": [{"kind": "cuda", "name": "V100S", "memory": 32}]}})
    found = make_plan(declared, {}, {})["instances"][0]
    assert value(found["args"], "--mmproj") == PATH
    assert value(found["args"], "--mmproj-device") == "CUDA0"
    assert found["host_memory"] is None


@pytest.mark.parametrize("gathered", [lambda item: item, lambda item: {"quants": {"": item}}])
def test_what_was_read_of_a_path_tells_of_it(gathered):
    read = read_model(gathered({"gguf": model().as_dict(), "projector": {"gguf": projector().as_dict()}}))[""]
    assert (read.facts.architecture, read.projector.facts.architecture) == ("toy", "clip")
    read = read_model(gathered({"gguf": model().as_dict(), "projector": {"msg": "cut off"}}))[""]
    assert (read.projector.facts, read.projector.error) == (None, "cut off")
    assert read_model(gathered({"gguf": model().as_dict()}))[""].projector is None


def test_of_a_path_without_a_header_nothing_is_counted_and_a_note_says_so():
    found = planned(beside=Found(None, "cut off"))
    assert overheads(found) == overheads(planned(without()))
    assert found["notes"][-1].endswith("was not read: nothing is planned for it (cut off)")
