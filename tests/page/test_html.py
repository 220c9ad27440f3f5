"""The page as text: what it holds whatever a plan says. Needs no browser."""

from __future__ import annotations

import base64
import copy
import hashlib
import re
from collections import Counter
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plans import MIB, PLANS, static, v100s

from ansible_collections.llamacpp.cluster.plugins.module_utils._page import PageError, plan_page
from ansible_collections.llamacpp.cluster.plugins.module_utils._page_html import breakable, gib, mib, mib_free, tag
from ansible_collections.llamacpp.cluster.plugins.module_utils._page_nodes import listing


class Structure(HTMLParser):
    """Counts elements and names of attributes, and collects text; fails where elements do not nest."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.update([tag, *(f"{tag} {name}" for name, _value in attrs)])
        if tag not in ("meta", "input", "wbr"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.mark.parametrize("name", PLANS)
def test_elements_nest(name: str) -> None:
    assert Structure(plan_page(PLANS[name]())).open == []


@pytest.mark.parametrize("name", PLANS)
def test_the_same_plan_gives_the_same_page(name: str) -> None:
    plan = PLANS[name]()
    before = copy.deepcopy(plan)
    assert plan_page(plan) == plan_page(PLANS[name]())
    assert plan == before


def test_the_policy_names_the_style_and_the_script_that_are_there() -> None:
    page = plan_page(v100s())
    hashes = {}
    for name in ("style", "script"):
        (content,) = re.findall(f"<{name}>(.*?)</{name}>", page, re.DOTALL)
        hashes[name] = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy.replace("&#x27;", "'") == (
        f"default-src 'none'; style-src 'sha256-{hashes['style']}'; script-src 'sha256-{hashes['script']}'; "
        "base-uri 'none'; form-action 'none'"
    )


def with_words(plan: dict[str, Any], word: str) -> dict[str, Any]:
    """The plan with `word` wherever an operator, a repository or a driver may have chosen the words."""
    (item,) = plan["instances"]
    item["why"] = item["choices"][1]["why"] = item["choices"][1]["chosen"] = word
    item["alternatives"][0]["why"] = item["settings"]["cache_type_k"] = item["release"] = plan["release"] = word
    item["args"][1] = item["unit"] = word
    for found in plan["devices"].values():
        for device in found:
            device["name"] = device["device"] = word
            for use in device["uses"]:
                use["instance"] = word
    item["name"] = word
    return plan


WORDS = st.text(min_size=1, max_size=12) | st.text(alphabet="<>&\"'/=-!`${} \n", min_size=1, max_size=12)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(WORDS)
def test_no_word_changes_the_structure(word: str) -> None:
    plain = Structure(plan_page(with_words(v100s(), "word"))).found
    found = Structure(plan_page(with_words(v100s(), word))).found
    # Names may be broken over lines, and whether a command's word is an option decides about its line only.
    del plain["wbr"], found["wbr"]
    assert found == plain


@given(WORDS)
def test_text_comes_back_as_it_was(word: str) -> None:
    word = word.replace("\r", "")
    assert "".join(Structure(tag("span", word)).text) == word
    assert "".join(Structure(breakable(word)).text) == word


def test_sizes_never_flatter() -> None:
    assert [mib(size) for size in (0, 1, MIB, MIB + 1, 1 << 40, None)] == ["0", "1", "1", "2", "1,048,576", "?"]
    assert [mib_free(size) for size in (0, MIB - 1, MIB, None)] == ["0", "0", "1", "?"]
    assert [gib(size) for size in (0, 3 << 29, None)] == ["0.0 GiB", "1.5 GiB", "?"]


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["CUDA0"], "CUDA0"),
        (["CUDA0", "CUDA1"], "CUDA0, CUDA1"),
        (["CUDA6", "CUDA7", "CUDA8", "CUDA9", "CUDA10"], "CUDA6 \u2013 CUDA10"),
        (["CPU", "CUDA0", "CUDA1", "CUDA2"], "CPU, CUDA0 \u2013 CUDA2"),
        (["CUDA0", "CUDA2", "CUDA3", "CUDA4"], "CUDA0, CUDA2 \u2013 CUDA4"),
        (["CUDA0", "CUDA0", "RPC1"], "CUDA0, CUDA0, RPC1"),
    ],
)
def test_devices_that_follow_each_other_are_told_shortly(names: list[str], text: str) -> None:
    assert listing(names) == text


def test_what_nobody_knows_is_said_to_be_unknown() -> None:
    page = plan_page(static())
    text = "".join(Structure(page).text)
    assert "sizes unknown" in text
    assert "32.0 GiB, taken: ?" in text
    assert "planned memory</dt><dd>?</dd>" in page
    assert 'class="strip"' not in page
    # Nothing is drawn that looks like a promise: of each GPU the outline alone.
    assert page.count('class="track"') >= 3
    assert 'class="free"' not in page
    assert 'aria-label="CUDA0, 32.0 GiB: behemoth ? MiB, free: ?"' in page
    assert "None" not in text


@pytest.mark.parametrize("schema", [1, 3, None])
def test_plans_of_another_schema_are_refused(schema: int | None) -> None:
    with pytest.raises(PageError, match="make the plan again"):
        plan_page({"schema": schema})


def test_addresses_of_people() -> None:
    text = "".join(Structure(plan_page(v100s(), {"vllm-node1": "fd00::31"})).text)
    assert "http://[fd00::31]:8000/v1" in text
