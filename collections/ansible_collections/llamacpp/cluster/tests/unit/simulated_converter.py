# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A simulated converter: a source of safetensors, a script and a llama-quantize that say what the real ones say.

The real ones need PyTorch and a build of llama.cpp; tests/models/test_conversion.py runs them on a node of a lab. What
these say is what those of b11434 said, and what they write is a real GGUF file.
"""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import tarfile
import venv

from ansible_collections.llamacpp.cluster.plugins.module_utils._tiny_model import tiny_model

PACKAGES = {"torch": "2.13.0+cpu", "numpy": "2.2.6", "transformers": "4.57.6", "sentencepiece": "0.2.3"}
KNOWN = "BertModel"

# Writes beside itself how often it ran and what it saw. config.json of the source may ask it for trouble.
SCRIPT = """
import argparse, json, os, signal, sys, time
here = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, here)
import conversion
parser = argparse.ArgumentParser()
parser.add_argument("--outtype"); parser.add_argument("--outfile"); parser.add_argument("--mmproj", action="store_true")
parser.add_argument("model")
args = parser.parse_args()
config = json.load(open(os.path.join(args.model, "config.json")))
seen = sorted(os.path.relpath(os.path.join(d, f), args.model) for d, _, fs in os.walk(args.model) for f in fs)
with open(config["diary"], "a") as diary:
    entry = {"seen": seen, "outtype": args.outtype, "mmproj": args.mmproj, "directory": args.model}
    diary.write(json.dumps(dict(entry, environment=dict(os.environ), pid=os.getpid())) + "\\n")
def say(line): print(line, file=sys.stderr, flush=True)
say("INFO:hf-to-gguf:Loading model: %s" % os.path.basename(args.model))
say("INFO:hf-to-gguf:Model architecture: %s" % config["architectures"][0])
if config["architectures"][0] != "BertModel" or (args.mmproj and not config.get("vision_config")):
    say("ERROR:hf-to-gguf:Model %s is not supported" % config["architectures"][0])
    sys.exit(1)
say("INFO:hf-to-gguf:token_embd.weight,             torch.float32 --> F16, shape = {384, 30522}")
if config.get("trouble") == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
data = open(os.path.join(here, "gguf-py", "gguf", "result.py"), "rb").read()
say("INFO:gguf.gguf_writer:%s: n_tensors = 101, total_size = 45.6M" % args.outfile)
with open(args.outfile, "wb") as stream:
    stream.write(data[: len(data) // 2])
    stream.flush()
    say("Writing:  53%|#####3    | 24.2M/45.6M [00:00<00:00, 208Mbyte/s]")
    if config.get("trouble") == "sleeps":
        time.sleep(3600)
    if config.get("trouble") == "full":
        say("OSError: Not enough free space to write 23440896 bytes")
        sys.exit(1)
    stream.write(data[len(data) // 2 :] if config.get("trouble") != "cut" else b"")
say("INFO:hf-to-gguf:Model successfully exported to %s" % args.outfile)
"""

# Its result is the model with another name inside, so that it is another blob.
QUANTIZE = """#!%s
import os, shutil, sys
source, result, quant, threads = sys.argv[-4:]
print("[   1/ 101] token_embd.weight - [   384, 30522,      1,      1], type =    f16, converting to q8_0", flush=True)
if quant == "IQ2_XXS" and "--imatrix" not in sys.argv:
    print(" ERROR: this quantization requires an importance matrix!", file=sys.stderr)
    sys.exit(1)
if os.path.exists(__file__ + ".sleeps"):
    open(result, "wb").write(b"GGUF")
    open(__file__ + ".started", "w").close()
    import time
    time.sleep(3600)
open(result, "wb").write(open(source, "rb").read().replace(b"tiny", b"4bit"))
"""


def safetensors(tensors):
    """Return a safetensors file of zeros: name -> shape, in 32 bits."""
    header, place = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in tensors.items():
        size = 4
        for extent in shape:
            size *= extent
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [place, place + size]}
        place += size
    raw = json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + bytes(place)


def make_source(directory, diary=None, **config):
    """Make a directory with a model, or make it anew. ``diary``: where the simulated converter writes that it ran."""
    (directory / "1_Pooling").mkdir(parents=True, exist_ok=True)
    described = {"architectures": [KNOWN], "diary": str(diary or directory.parent / "diary"), **config}
    (directory / "config.json").write_text(json.dumps(described))
    (directory / "tokenizer.json").write_text("{}")
    (directory / "1_Pooling" / "config.json").write_text("{}")
    (directory / "model.safetensors").write_bytes(safetensors({"embeddings": (30, 8), "norm": (8,)}))
    return directory


def converter_files():
    """Return the files of the simulated converter, by their names in llama.cpp's tree."""
    return {
        "CMakeLists.txt": b"",
        "ggml/CMakeLists.txt": b"",
        "convert_hf_to_gguf.py": SCRIPT.encode(),
        "conversion/__init__.py": b"",
        "gguf-py/gguf/result.py": tiny_model(1),
        "gguf-py/tests/test_gguf.py": b"",
        "src/llama.cpp": b"",
    }


def make_tree(directory):
    """Write the simulated converter into a directory; return its script."""
    for name, data in converter_files().items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return directory / "convert_hf_to_gguf.py"


def make_archive(path, top="llama.cpp", files=None):
    """Pack the simulated converter, as a source of llama.cpp; ``top``: the directory that it lies in."""
    with tarfile.open(path, "w:gz") as tar:
        for name, data in (files or converter_files()).items():
            member = tarfile.TarInfo((top + "/" if top else "") + name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def make_quantize(path):
    """Write the simulated llama-quantize."""
    path.write_text(QUANTIZE % sys.executable)
    path.chmod(0o755)
    return path


def make_python(directory, packages=None):
    """Make a virtual environment that says it has these packages; return its interpreter."""
    venv.create(directory, with_pip=False, symlinks=True)
    python = directory / "bin" / "python"
    code = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    site = subprocess.run([str(python), "-c", code], check=True, capture_output=True, text=True).stdout.strip()
    for name, version in (PACKAGES if packages is None else packages).items():
        described = directory.__class__(site) / ("%s-%s.dist-info" % (name, version))
        described.mkdir()
        (described / "METADATA").write_text("Metadata-Version: 2.1\nName: %s\nVersion: %s\n" % (name, version))
    return python


def make_arguments(directory, python):
    """Make all that a conversion needs; return the module's arguments. The source is ``model`` in the directory."""
    (directory / "tree").mkdir()
    return {
        "name": "owner/model/F16",
        "source": str(make_source(directory / "model")),
        "store": str(directory / "store"),
        "outtype": "f16",
        "convert_script": str(make_tree(directory / "tree")),
        "quantize": str(make_quantize(directory / "llama-quantize")),
        "release": "b11434",
        "python": python,
        "threads": 1,
    }


def read_diary(directory):
    """Return what the simulated converter wrote of its runs."""
    diary = directory / "diary"
    return [json.loads(line) for line in diary.read_text().splitlines()] if diary.exists() else []
