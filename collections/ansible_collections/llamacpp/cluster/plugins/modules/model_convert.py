#!/usr/bin/python
# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Make a GGUF model of safetensors, and put it into the store."""

from __future__ import annotations

DOCUMENTATION = r"""
module: model_convert
short_description: Make a GGUF model of safetensors, and put it into the store
version_added: 0.4.0
description:
  - Runs the C(convert_hf_to_gguf.py) of one version of llama.cpp, and its C(llama-quantize) where O(quant) is given, in
    a virtual environment that is there already.
  - The result is verified as every model in the store, and gets its name when it is whole. Its manifest records what it
    was made of and by which versions.
  - Nothing is converted again while all of that is the same. When the same files lie elsewhere, or are of another
    commit, only the manifest changes.
  - Files of the source are looked at first, so that a missing or cut one is found before minutes have passed.
  - Python code and pickles of the source are withheld from the converter unless O(trust_code) is set. It asks nobody on
    the network.
  - A run that was killed leaves nothing that has a name. The next one goes on behind the last whole file.
  - The action of the same name brings the converter to the node, and shows how far the work is.
options:
  name:
    description: Name of the result in the store.
    type: str
    required: true
  source:
    description:
      - Directory on the node with safetensors, C(config.json) and a tokenizer, as an absolute path.
      - Or the name of a model in the store that has these files.
    type: str
    required: true
  store:
    description: Directory of the store.
    type: path
    default: /var/lib/llamacpp/models
  file:
    description:
      - Name of the result's file.
      - Unless set, O(name) with hyphens for slashes, and C(.gguf) behind it.
    type: str
  outtype:
    description:
      - What the converter writes weights as. V(auto) chooses the kind of 16 bits that keeps most of them.
      - A few kinds of tensors stay V(f32) in any case.
    type: str
    choices: [f32, f16, bf16, q8_0, auto]
    default: auto
  quant:
    description: Quantisation that C(llama-quantize) makes of it, for example V(Q4_K_M).
    type: str
  imatrix:
    description: Importance matrix on the node, for O(quant). Quantisations of 1 and 2 bits need one.
    type: path
  mmproj:
    description: Also make the projector of a model that sees or hears, as C(mmproj-FILE).
    type: bool
    default: false
  llama_source:
    description:
      - Source of llama.cpp on the control node, an archive as M(llamacpp.cluster.llama_source) fetches it.
      - The action plugin takes the converter out of it. Releases hold none, because nodes that only serve need none.
    type: path
  converter:
    description: Set by the action plugin. The converter on the node, packed.
    type: path
  convert_script:
    description: C(convert_hf_to_gguf.py) in a tree of llama.cpp's source on the node, instead of O(llama_source).
    type: path
  release:
    description: Which version of llama.cpp the converter and O(quantize) are of. Another one converts again.
    type: str
    required: true
  quantize:
    description: The C(llama-quantize) on the node. Required with O(quant).
    type: path
  python:
    description:
      - Interpreter of a virtual environment with C(torch) (a build for CPUs is enough), C(numpy), C(transformers),
        C(sentencepiece) and C(protobuf).
    type: path
    required: true
  trust_code:
    description:
      - Let the converter run Python code that comes with the source, and load its pickles.
      - It runs as the user that runs the module. Read it before.
    type: bool
    default: false
  threads:
    description: Threads to work with. 0 means one a CPU.
    type: int
    default: 0
  quota:
    description: Bytes that the store may hold, 0 for no limit. The least recently used models go first.
    type: int
    default: 0
  keep:
    description: Names that are not evicted.
    type: list
    elements: str
    default: []
  holder:
    description: Who runs this; shown to others who wait.
    type: str
    default: ""
  lock_wait:
    description: Seconds to wait for another run that converts the same.
    type: int
    default: 7200
extends_documentation_fragment:
  - llamacpp.cluster.watched
  - llamacpp.cluster.attributes.no_diff
seealso:
  - module: llamacpp.cluster.llama_source
  - module: llamacpp.cluster.python_environment
author:
  - The llamacpp.cluster authors (@llamacpp-cluster)
"""

EXAMPLES = r"""
- name: Make a model of 4 bits
  llamacpp.cluster.model_convert:
    name: sentence-transformers/all-MiniLM-L6-v2/Q8_0
    source: /srv/models/all-MiniLM-L6-v2
    outtype: f16
    quant: Q8_0
    llama_source: "{{ __source.archive }}"
    release: b11434
    quantize: /opt/llamacpp/current/bin/llama-quantize
    python: /opt/llamacpp/venv/convert/bin/python
"""

RETURN = r"""
manifest:
  description: The model, as it is in the store. Empty in check mode before it is made.
  returned: success
  type: dict
model:
  description: Path of the model's file, what C(--model) gets.
  returned: success
  type: str
evicted:
  description: Names of models that had to go for it.
  returned: success
  type: list
  elements: str
seconds:
  description: How long the conversion took, without waiting for others; 0 when nothing was converted.
  returned: success
  type: int
"""

import errno

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.llamacpp.cluster.plugins.module_utils._convert import Conversion, Wanted
from ansible_collections.llamacpp.cluster.plugins.module_utils._convert_source import OUTTYPES, ConvertError
from ansible_collections.llamacpp.cluster.plugins.module_utils._lock import NOBODY_KNOWN
from ansible_collections.llamacpp.cluster.plugins.module_utils._manifest import StoreError
from ansible_collections.llamacpp.cluster.plugins.module_utils._progress import Progress
from ansible_collections.llamacpp.cluster.plugins.module_utils._release import ReleaseError
from ansible_collections.llamacpp.cluster.plugins.module_utils._store import Store

FULL = "%s: the disk of %s is full: free some space, or set llamacpp_models_dir to another disk"


def wanted_model(module: AnsibleModule) -> Wanted:
    """Return what the options say."""
    params = module.params
    same = ("name", "source", "python", "outtype", "quant", "file", "mmproj", "imatrix", "release", "quantize")
    return Wanted(
        script=params["convert_script"],
        tools=params["converter"],
        trust_code=params["trust_code"],
        threads=params["threads"],
        **{name: params[name] for name in same},
    )


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "source": {"type": "str", "required": True},
            "store": {"type": "path", "default": "/var/lib/llamacpp/models"},
            "file": {"type": "str"},
            "outtype": {"type": "str", "choices": list(OUTTYPES), "default": "auto"},
            "quant": {"type": "str"},
            "imatrix": {"type": "path"},
            "mmproj": {"type": "bool", "default": False},
            "llama_source": {"type": "path"},
            "converter": {"type": "path"},
            "convert_script": {"type": "path"},
            "release": {"type": "str", "required": True},
            "quantize": {"type": "path"},
            "python": {"type": "path", "required": True},
            "trust_code": {"type": "bool", "default": False},
            "threads": {"type": "int", "default": 0},
            "quota": {"type": "int", "default": 0},
            "keep": {"type": "list", "elements": "str", "default": [], "no_log": False},
            "holder": {"type": "str", "default": ""},
            "lock_wait": {"type": "int", "default": 7200},
            "progress_file": {"type": "path"},
        },
        required_one_of=[("llama_source", "convert_script")],
        mutually_exclusive=[("llama_source", "convert_script")],
        required_by={"llama_source": ["converter"]},
        supports_check_mode=True,
    )
    params = module.params
    progress = Progress(params["progress_file"])
    store = Store(params["store"])
    wanted = wanted_model(module)
    try:
        done = Conversion(store, wanted, progress).run(
            params["quota"], params["keep"], params["holder"] or NOBODY_KNOWN, params["lock_wait"], module.check_mode
        )
        path = store.path_of(wanted.name, wanted.result)
    except (ConvertError, StoreError, ReleaseError) as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        module.fail_json(msg=FULL % (error, params["store"]) if full else str(error))
    finally:
        progress.close()
    module.exit_json(
        changed=done.changed,
        manifest=done.manifest.as_dict() if done.manifest else {},
        model=path,
        evicted=done.evicted,
        seconds=done.seconds,
    )


if __name__ == "__main__":
    main()
