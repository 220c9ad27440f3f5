#!/usr/bin/python
# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Say what a model takes on given devices, and whether it fits."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vram_fit
short_description: Say what a model takes on given devices, and whether it fits
version_added: 0.2.0
description:
  - Works out what llama-server b11434 would reserve on every device and in the memory of the machine that it runs on,
    from the model's header and its settings alone. No GPU, no weights and no binary of llama.cpp are needed.
  - Weights and context are llama.cpp's own figures for every architecture that it knows. The overhead is what a process
    takes beside its buffers, as measured on GPUs.
  - Fails for settings with which llama-server would not start, with the setting and what to write instead.
  - The settings are llama-server's long flags with underscores.
options:
  path:
    description: Model file on the machine where the module runs; of a split model, any of its files.
    type: path
  url:
    description:
      - Address of the model file, C(http), C(https) or C(hf://owner/repo/file[@revision]). Only its header is fetched.
    type: str
  gguf:
    description: What M(llamacpp.cluster.gguf_info) returned as C(gguf).
    type: dict
  devices:
    description:
      - The devices, in the order of llama-server's C(--device).
      - A device of kind V(cpu) is the memory of the machine that llama-server runs on. Without one, that memory is not
        checked.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: Name as llama-server has it, such as V(CUDA0) or V(RPC0).
        type: str
        required: true
      kind:
        description: What it is; V(rpc) is a device of a worker.
        type: str
        required: true
        choices: [cuda, rocm, vulkan, metal, sycl, rpc, cpu]
      total:
        description: Its memory in bytes, or with a unit (V(24 GiB)). Unknown when 0 or left out; then everything fits.
        type: raw
      free:
        description: What of it is free. By default all of it.
        type: raw
      compute_capability:
        description: Compute capability of an NVIDIA GPU, such as V(9.0). It decides what the process itself takes.
        type: str
      host:
        description: Address of a worker, C(address:port), for the arguments.
        type: str
      backend:
        description: What is behind a device of kind V(rpc). By default a processor.
        type: str
        choices: [cuda, rocm, vulkan, metal, sycl, cpu]
  ctx_size:
    description: Tokens of context of all slots together; 0 is what the model was trained on.
    type: int
    default: 0
  parallel:
    description: Slots. Below 0 it is llama-server's own choice, 4 with a unified cache.
    type: int
    default: 1
  kv_unified:
    description: Whether all slots share one cache. By default only where O(parallel) is below 0, as in llama-server.
    type: bool
  cache_type_k:
    description: Type of cached keys.
    type: str
    choices: [f32, f16, bf16, q8_0, q4_0, q4_1, iq4_nl, q5_0, q5_1]
    default: f16
  cache_type_v:
    description: Type of cached values.
    type: str
    choices: [f32, f16, bf16, q8_0, q4_0, q4_1, iq4_nl, q5_0, q5_1]
    default: f16
  flash_attn:
    description: Flash attention; V(auto) is on where the devices can. A bare on or off of YAML is understood.
    type: str
    default: auto
  batch_size:
    description: Tokens of a batch.
    type: int
    default: 2048
  ubatch_size:
    description: Tokens that are computed at a time.
    type: int
    default: 512
  gpu_layers:
    description: Layers on devices, the output counted as one; a number, V(all) or V(auto).
    type: str
    default: all
  tensor_split:
    description:
      - Shares of the devices, a list or C(3,1). By default layers are divided by free memory, as llama-server does.
    type: raw
  split_mode:
    description: How a model is spread over devices.
    type: str
    choices: [none, layer, row, tensor]
    default: layer
  cpu_moe:
    description: Keep all experts in memory.
    type: bool
    default: false
  n_cpu_moe:
    description: Keep the experts of so many layers in memory.
    type: int
    default: 0
  swa_full:
    description: Give sliding layers the whole context.
    type: bool
    default: false
  no_kv_offload:
    description: Keep the context in memory.
    type: bool
    default: false
  embedding:
    description: Serve embeddings.
    type: bool
    default: false
  mmproj:
    description: Projector, a path, an address, or what M(llamacpp.cluster.gguf_info) returned as C(gguf).
    type: raw
  model_draft:
    description: Model that drafts, a path, an address, or what M(llamacpp.cluster.gguf_info) returned as C(gguf).
    type: raw
    aliases: [draft]
  gpu_layers_draft:
    description: Layers of O(model_draft) on devices; a number, V(all) or V(auto).
    type: str
    default: all
  draft_max:
    description: Tokens that are drafted at a time. By default 3 with O(model_draft), as in llama-server.
    type: int
    default: 0
  margin:
    description: MiB that have to stay free on every device. What a process takes beside its buffers is counted already.
    type: int
    default: 256
  estimator:
    description:
      - V(python) works it out.
      - V(llama_cpp) asks the programs in O(bin_dir), with simulated workers on loopback for devices, and for O(url) a
        sparse copy of the header. It answers for any cluster that can be described, in whole MiB.
    type: str
    choices: [python, llama_cpp]
    default: python
  bin_dir:
    description: Directory of llama.cpp's programs. Required with O(estimator=llama_cpp).
    type: path
  timeout:
    description: Seconds to wait for the server of O(url).
    type: int
    default: 30
extends_documentation_fragment:
  - llamacpp.cluster.attributes.info
seealso:
  - module: llamacpp.cluster.gguf_info
  - module: llamacpp.cluster.cluster_plan
author:
  - The llamacpp.cluster authors (@llamacpp-cluster)
"""

EXAMPLES = r"""
- name: Does it fit on two 24 GiB cards with 32k tokens of context?
  llamacpp.cluster.vram_fit:
    path: /srv/models/qwen3-30b-a3b-q4_k_m.gguf
    ctx_size: 32768
    devices:
      - {name: CUDA0, kind: cuda, total: 24 GiB, compute_capability: "8.6"}
      - {name: CUDA1, kind: cuda, total: 24 GiB, compute_capability: "8.6"}
  register: answer

- name: Show why
  ansible.builtin.debug:
    msg: "{{ answer.fit.explanation }}"

- name: The same model over two workers, with 4 slots that share a quantised cache
  llamacpp.cluster.vram_fit:
    gguf: "{{ model.gguf }}"
    ctx_size: 65536
    parallel: 4
    kv_unified: true
    cache_type_k: q8_0
    cache_type_v: q8_0
    devices:
      - {name: RPC0, kind: rpc, backend: cuda, host: "10.1.0.2:50052", total: 17179869184}
      - {name: RPC1, kind: rpc, backend: cuda, host: "10.1.0.3:50052", total: 17179869184}
"""

RETURN = r"""
fit:
  description: What it takes.
  returned: success
  type: dict
  contains:
    fits:
      description: Whether every device and the host have room, with the margin.
      type: bool
    exact:
      description: Whether every part is llama.cpp's own figure. If not, what is missing is a bound on the safe side.
      type: bool
    devices:
      description: The devices, in the order in which they were given.
      type: list
      elements: dict
      contains:
        name:
          description: Its name.
          type: str
        kind:
          description: Its kind.
          type: str
        model:
          description: Bytes of weights.
          type: int
        context:
          description: Bytes of caches.
          type: int
        compute:
          description: Bytes of compute buffers.
          type: int
        overhead:
          description: Bytes of the process beside its buffers.
          type: int
        total:
          description: Sum of these.
          type: int
        free:
          description: Bytes that were free, or null.
          type: int
        free_after:
          description: Bytes that are left, below 0 where it does not fit, or null.
          type: int
        layers:
          description: Layers on it, the output counted as one.
          type: int
        fits:
          description: Whether it fits here.
          type: bool
    host:
      description: The same of the memory of the machine that llama-server runs on.
      type: dict
    args:
      description:
        - Arguments of llama-server that do what was worked out. Nothing that decides placement is left to a default.
      type: list
      elements: str
    explanation:
      description: The answer in a sentence.
      type: str
    notes:
      description: What is not exact, and why.
      type: list
      elements: str
    layers:
      description: Name of the device of every layer and, last, of the output; V(host) is memory.
      type: list
      elements: str
    n_ctx:
      description: Tokens of context in all, as llama-server rounds them.
      type: int
    n_ctx_slot:
      description: Tokens that one request can have.
      type: int
    flash_attn:
      description: Whether flash attention is on.
      type: bool
    pipeline:
      description: Whether llama-server keeps four copies of its inputs, to keep several devices busy.
      type: bool
    settings:
      description: The settings that were used.
      type: dict
    parts:
      description: What of it are the projector and the drafting model.
      type: dict
"""

import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import fields
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.common.validation import check_type_path

from ansible_collections.llamacpp.cluster.plugins.module_utils._ggml_types import CACHE_TYPES
from ansible_collections.llamacpp.cluster.plugins.module_utils._gguf import GgufError
from ansible_collections.llamacpp.cluster.plugins.module_utils._memory import estimate
from ansible_collections.llamacpp.cluster.plugins.module_utils._oracle import OracleError, copied, estimator
from ansible_collections.llamacpp.cluster.plugins.module_utils._read_model import read_model
from ansible_collections.llamacpp.cluster.plugins.module_utils._settings import SPLIT_MODES, Refused, Settings
from ansible_collections.llamacpp.cluster.plugins.module_utils._vram_fit import (
    INNER,
    KINDS,
    MARGIN_MIB,
    vram_fit,
)

BACKENDS = [kind for kind in KINDS if kind != "rpc"]


def read(module: AnsibleModule, name: str, place: Any) -> Any:
    """Return a model's facts from a path, an address or gguf_info's result; ends the module when that fails."""
    if place is None or isinstance(place, Mapping):
        return place
    place = str(place)
    try:
        return read_model(place, timeout=module.params["timeout"])
    except (GgufError, OSError) as error:
        module.fail_json(msg="%s %s: %s" % (name, place, error))


def paths_of(params: Mapping[str, Any]) -> dict[str, str]:
    """Return the paths that llama-server can be told."""
    named: dict[str, Any | None] = {
        "model": params["path"],
        "mmproj": params["mmproj"],
        "draft": params["model_draft"],
    }
    return {
        name: os.path.abspath(check_type_path(value))
        for name, value in named.items()
        if isinstance(value, str) and "://" not in value
    }


def asked(module: AnsibleModule, stack: ExitStack, models: Mapping[str, Any], places: Mapping[str, Any]) -> Any:
    """Return who is asked for figures; ends the module where llama.cpp cannot be, as it wants a file."""
    if module.params["estimator"] == "python":
        return estimate
    files = {}
    for name in ("model", "model_draft"):
        place = places[name]
        if place is None:
            continue
        if isinstance(place, Mapping):
            module.fail_json(
                msg="estimator llama_cpp reads the header itself: write a path or an address for the model"
            )
        try:
            files[id(models[name])] = stack.enter_context(copied(place)) if "://" in place else os.path.abspath(place)
        except (GgufError, OSError) as error:
            module.fail_json(msg="%s %s: %s" % (name, place, error))
    return estimator(lambda facts: files[id(facts)], module.params["bin_dir"])


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path"},
            "url": {"type": "str"},
            "gguf": {"type": "dict"},
            "devices": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "name": {"type": "str", "required": True},
                    "kind": {"type": "str", "required": True, "choices": list(KINDS)},
                    "total": {"type": "raw"},
                    "free": {"type": "raw"},
                    "compute_capability": {"type": "str"},
                    "host": {"type": "str"},
                    "backend": {"type": "str", "choices": BACKENDS},
                },
            },
            "ctx_size": {"type": "int", "default": 0},
            "parallel": {"type": "int", "default": 1},
            "kv_unified": {"type": "bool"},
            "cache_type_k": {"type": "str", "choices": list(CACHE_TYPES), "default": "f16"},
            "cache_type_v": {"type": "str", "choices": list(CACHE_TYPES), "default": "f16"},
            "flash_attn": {"type": "str", "default": "auto"},
            "batch_size": {"type": "int", "default": 2048},
            "ubatch_size": {"type": "int", "default": 512},
            "gpu_layers": {"type": "str", "default": "all"},
            "tensor_split": {"type": "raw"},
            "split_mode": {"type": "str", "choices": list(SPLIT_MODES), "default": "layer"},
            "cpu_moe": {"type": "bool", "default": False},
            "n_cpu_moe": {"type": "int", "default": 0},
            "swa_full": {"type": "bool", "default": False},
            "no_kv_offload": {"type": "bool", "default": False},
            "embedding": {"type": "bool", "default": False},
            "mmproj": {"type": "raw"},
            "model_draft": {"type": "raw", "aliases": ["draft"]},
            "gpu_layers_draft": {"type": "str", "default": "all"},
            "draft_max": {"type": "int", "default": 0},
            "margin": {"type": "int", "default": MARGIN_MIB},
            "estimator": {"type": "str", "choices": ["python", "llama_cpp"], "default": "python"},
            "bin_dir": {"type": "path"},
            "timeout": {"type": "int", "default": 30},
        },
        mutually_exclusive=[("path", "url", "gguf")],
        required_one_of=[("path", "url", "gguf")],
        required_if=[("estimator", "llama_cpp", ["bin_dir"])],
        supports_check_mode=True,
    )
    params = module.params
    settings = {item.name: params[item.name] for item in fields(Settings) if item.name not in INNER}
    # YAML reads a bare on and off as booleans, which Ansible then writes as True and False.
    settings["flash_attn"] = {"true": "on", "false": "off"}.get(params["flash_attn"].lower(), params["flash_attn"])
    places = {"model": params["gguf"] or params["path"] or params["url"]}
    places.update({name: params[name] for name in ("mmproj", "model_draft")})
    with ExitStack() as stack:
        try:
            models = {
                name: read(module, "path" if name == "model" and params["path"] else name, place)
                for name, place in places.items()
            }
            fit = vram_fit(
                models["model"],
                params["devices"],
                mmproj=models["mmproj"],
                draft=models["model_draft"],
                draft_gpu_layers=params["gpu_layers_draft"],
                margin=params["margin"],
                paths=paths_of(params),
                estimator=asked(module, stack, models, places),
                **settings,
            )
        except Refused as error:
            module.fail_json(msg=str(error), setting=error.setting)
        except OracleError as error:
            module.fail_json(msg=str(error))
    module.exit_json(changed=False, fit=fit)


if __name__ == "__main__":
    main()
