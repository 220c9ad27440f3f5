"""The page of a plan, in a browser: what is drawn is true, can be read by everyone, and does nothing but be read."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from chromium import Seen
from plans import GIB, MIB, PARTS, PLANS, h100s, hostile, instance, large, share, v100s
from plans import compose as composed

Show = Callable[..., Seen]
WIDTHS = (1440, 1024, 390)
UNFOLD = "document.querySelectorAll('details').forEach(item => { item.open = true; })"

# The bars of the page, in order: what they say, their width on the screen, and of each rectangle kind, bytes and width.
BARS = """
Array.from(document.querySelectorAll(".bar"), bar => ({
  spoken: bar.getAttribute("aria-label"),
  width: bar.getBoundingClientRect().width,
  rects: Array.from(bar.querySelectorAll("rect"), rect => ({
    kind: rect.getAttribute("class"),
    bytes: Number(rect.dataset.bytes),
    left: rect.getBoundingClientRect().left - bar.getBoundingClientRect().left,
    width: rect.getBoundingClientRect().width,
    title: rect.textContent,
  })),
}))
"""

# What is seen and ends right of the window; a command line scrolls in a box of its own.
OUTSIDE = """
Array.from(document.querySelectorAll("body *:not(.unseen, .unseen *, .skip, pre *)"))
  .filter(item => item.checkVisibility() && item.getBoundingClientRect().right > innerWidth + 0.5)
  .map(item => item.outerHTML.slice(0, 80))
"""

# WCAG 2.1's contrast of every text that is seen with what it stands on; the words of those below `least`.
FAINT = """
least => {
  const numbers = color => color.match(/[\\d.]+/g).map(Number);
  const light = color => {
    const [r, g, b] = numbers(color).slice(0, 3).map(v => v / 255)
      .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ratio = (one, other) => {
    const [low, high] = [light(one), light(other)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  const ground = element => {
    for (let at = element; at; at = at.parentElement) {
      const color = getComputedStyle(at).backgroundColor;
      const alpha = numbers(color)[3] ?? 1;
      if (alpha === 1) return color;
      if (alpha > 0) throw new Error("a ground that shines through: " + color);
    }
    return "rgb(255, 255, 255)";
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const faint = [];
  let looked = 0;
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    if (!node.data.trim() || !element.checkVisibility() || element.closest(".unseen, title, script")) continue;
    looked += 1;
    let seen;
    if (element.ownerSVGElement) {
      element.scrollIntoView({block: "center"});
      const box = element.getBoundingClientRect();
      const behind = document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2);
      seen = ratio(getComputedStyle(element).fill, getComputedStyle(behind).fill);
    } else {
      seen = ratio(getComputedStyle(element).color, ground(element));
    }
    if (seen < least) faint.push(`${node.data.trim()}: ${seen.toFixed(2)}`);
  }
  return {looked, faint};
}
"""


def devices_of(plan: dict[str, Any]) -> list[dict[str, Any]]:
    """The devices in the order of the page; `scale`: bytes of a full bar.

    Nodes with nothing planned have no bars, nor has the host memory beside GPUs when nothing is planned in it.
    """
    found = []
    for devices in plan["devices"].values():
        if not any(device["uses"] for device in devices):
            continue
        for device in devices:
            alike = [item for item in devices if (item["kind"] == "cpu") == (device["kind"] == "cpu")]
            if device["uses"] or device["kind"] != "cpu":
                found.append(device | {"scale": max(item["memory_bytes"] for item in alike)})
    return found


@pytest.mark.parametrize("name", PLANS)
def test_it_asks_for_nothing_and_has_nothing_to_complain_about(show: Show, name: str) -> None:
    seen = show(name)
    assert [url for url in seen.requests if not url.startswith("file:") or not url.endswith("/plan.html")] == []
    assert len(seen.requests) == 1
    assert seen.messages == []


def test_its_policy_is_in_force(show: Show) -> None:
    seen = show("lab")
    seen.ask("""() => {
        const script = document.createElement("script");
        script.textContent = "document.title = 'owned'";
        document.body.append(script);
        const image = document.createElement("img");
        image.src = "https://127.0.0.1:9/x.png";
        document.body.append(image);
        document.body.setAttribute("style", "color: red");
    }""")
    seen.page.wait_for_timeout(100)
    assert seen.page.title() != "owned"
    assert sum("Content Security Policy" in message for message in seen.messages) == 3


@pytest.mark.parametrize("name", ["lab", "v100s", "h100s"])
def test_bars_are_as_wide_as_their_bytes(show: Show, name: str) -> None:
    plan = PLANS[name]()
    seen = show(plan)
    for width in WIDTHS:
        seen.page.set_viewport_size({"width": width, "height": 900})
        bars = seen.ask(BARS)
        for bar, device in zip(bars, devices_of(plan), strict=True):
            wanted = [(part, use[f"{part}_bytes"]) for use in device["uses"] for part in PARTS if use[f"{part}_bytes"]]
            wanted += [(kind, device[f"{kind}_bytes"]) for kind in ("margin", "free")]
            assert [(rect["kind"], rect["bytes"]) for rect in bar["rects"]] == [
                *wanted,
                ("track", device["memory_bytes"]),
            ]
            at = 0.0
            for rect in bar["rects"]:
                true = bar["width"] * rect["bytes"] / device["scale"]
                assert rect["width"] == pytest.approx(true, abs=1), (device["device"], rect)
                assert rect["left"] == pytest.approx(0 if rect["kind"] == "track" else at, abs=1), (
                    device["device"],
                    rect,
                )
                at += true


def test_a_smaller_device_has_a_shorter_bar(show: Show) -> None:
    hardware = {"node1": [("CUDA0", "RTX 3090", "cuda", 24 * 1024), ("CUDA1", "RTX 4090", "cuda", 48 * 1024)]}
    shares = [
        share("node1", "CUDA0", (0, 9), (9000, 100, 100, 100)),
        share("node1", "CUDA1", (10, 32), (20000, 9, 9, 9)),
    ]
    bars = show(composed(hardware, [instance("mixed", shares, strategy="layer-split", why="Both.")])).ask(BARS)
    tracks = [next(rect["width"] for rect in bar["rects"] if rect["kind"] == "track") for bar in bars]
    assert tracks[0] / tracks[1] == pytest.approx(0.5, abs=0.01)


def test_more_than_there_is_goes_past_the_limit_and_says_so(show: Show) -> None:
    hardware = {"node1": [("CUDA0", "NVIDIA L4", "cuda", 20000)]}
    shares = [share("node1", "CUDA0", (0, 9), (25000, 0, 0, 0))]
    seen = show(composed(hardware, [instance("big", shares, strategy="one-device", why="Declared.")]))
    (bar,) = seen.ask(BARS)
    model, track = bar["rects"]
    assert [model["kind"], track["kind"]] == ["model", "track"]
    assert track["width"] / model["width"] == pytest.approx(0.8, abs=0.01)
    assert seen.page.locator(".over").inner_text() == "5,256 MiB too much"
    assert seen.page.locator(".bar .limit").count() == 1


def test_every_size_stands_there_as_text(show: Show) -> None:
    plan = h100s()
    seen = show(plan)
    rows = seen.ask("""Array.from(document.querySelectorAll("#memory .use"), row =>
        [row.querySelector("th").innerText, ...Array.from(row.querySelectorAll("td"), cell => cell.innerText)])""")
    wanted = [
        [f"{use[f'{part}_bytes'] // MIB:,}" for part in PARTS]
        + [f"{sum(use[f'{part}_bytes'] for part in PARTS) // MIB:,}"]
        for device in devices_of(plan)
        for use in device["uses"]
    ]
    assert [row[1:] for row in rows] == wanted
    balances = seen.page.locator("#memory .balance").all_inner_texts()
    assert balances[4] == "37,356 MiB free · 256 MiB margin · of 79.6 GiB"
    bars = seen.ask(BARS)
    assert bars[4]["spoken"] == ("CUDA4, 79.6 GiB: coder 40,742 MiB, embed 3,205 MiB, margin 256 MiB, 37,356 MiB free")
    assert bars[4]["rects"][0]["title"] == "coder, model: 32,890 MiB (34,487,664,640 bytes)"


@pytest.mark.parametrize("name", PLANS)
def test_nothing_sticks_out(show: Show, name: str) -> None:
    seen = show(name)
    seen.ask(UNFOLD)
    for width in WIDTHS:
        seen.page.set_viewport_size({"width": width, "height": 900})
        assert seen.ask("document.documentElement.scrollWidth") <= width
        assert seen.ask(OUTSIDE) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["v100s", "h100s", "empty"])
def test_text_has_contrast(show: Show, name: str, scheme: str) -> None:
    seen = show(name, color_scheme=scheme)
    seen.ask(UNFOLD)
    ground = seen.ask("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, ground[4:-1].split(","))) < 200) == (scheme == "dark")
    found = seen.ask(FAINT, 4.5)
    assert found["looked"] > (20 if name == "empty" else 100)
    assert found["faint"] == []


def test_names_are_text_and_nothing_else(show: Show) -> None:
    seen = show("hostile")
    seen.page.wait_for_timeout(100)
    assert "owned" not in seen.messages
    assert seen.ask("document.querySelectorAll('script').length") == 1
    assert seen.ask("document.querySelectorAll('img, iframe, object, link, base, form').length") == 0
    handlers = """Array.from(document.querySelectorAll("*")).flatMap(item => Array.from(item.attributes))
        .filter(item => item.name.startsWith("on") || item.name === "style").length"""
    assert seen.ask(handlers) == 0
    name = hostile()["instances"][0]["name"]
    assert seen.page.locator("#instances h3").inner_text() == "1" + name
    assert seen.page.locator("#instances .why").inner_text() == name


def test_a_printer_gets_everything(show: Show) -> None:
    # A4 at 96 dots an inch; who prints from the dark scheme wants white paper all the same.
    seen = show("v100s", 794, color_scheme="dark")
    command = seen.page.locator("pre").first
    reason = seen.page.get_by_text("71.9 GiB of weights")
    assert not command.is_visible()
    seen.page.emulate_media(media="print", color_scheme="dark")
    assert not seen.page.locator("nav").is_visible()
    assert command.bounding_box()["height"] > 50
    assert reason.bounding_box()["height"] > 0
    assert seen.page.locator(".overview thead").is_visible()
    assert seen.ask(OUTSIDE) == []
    assert seen.ask("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert seen.ask("getComputedStyle(document.querySelector('.card')).backgroundColor") == "rgb(255, 255, 255)"
    assert seen.ask(FAINT, 4.5)["faint"] == []
    assert seen.page.pdf(format="A4").startswith(b"%PDF")


def test_without_scripts_all_of_it_can_be_read(show: Show) -> None:
    page = show("large", java_script_enabled=False).page
    assert not page.locator("#filter").is_visible()
    assert not page.locator("[data-copy]").first.is_visible()
    assert page.locator("#memory .bar").count() == len(devices_of(large()))
    page.locator("#instances summary", has_text="Command").first.click()
    assert "--model" in page.locator("pre").first.inner_text()


def test_a_large_cluster_stays_small_and_is_filtered(show: Show) -> None:
    seen = show("large")
    assert seen.ask("document.documentElement.outerHTML.length") < 1_000_000
    cards = seen.page.locator("#memory .cards > .card:visible")
    assert cards.count() == 12
    assert seen.page.locator("#memory .wide summary").inner_text() == "52 nodes with nothing planned"
    seen.page.get_by_label("Filter").fill("GPU049 giant-8")
    assert cards.count() == 1
    assert cards.locator("h3").inner_text().startswith("gpu049.cluster.example")
    assert seen.page.locator("#instances > article:visible").count() == 1
    assert seen.page.locator("#found").inner_text().endswith("shown")
    seen.page.get_by_label("Filter").fill("")
    assert cards.count() == 12
    assert seen.page.locator("#found").inner_text() == ""


def test_small_clusters_have_no_filter(show: Show) -> None:
    assert show("v100s").page.locator("#filter").count() == 0


def test_a_command_line_is_copied(show: Show) -> None:
    page = show("v100s", permissions=["clipboard-read", "clipboard-write"]).page
    page.locator("#instances summary", has_text="Command lines").click()
    figure = page.locator("figure").first
    figure.get_by_role("button").click()
    figure.get_by_role("button", name="Copied").wait_for()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.startswith(
        "llama-server \\\n  --model /var/lib/llamacpp/models/OR1-Behemoth.Q4_K_M.gguf \\\n  --alias behemoth"
    )


def test_it_can_be_used_without_a_mouse(show: Show) -> None:
    page = show("v100s").page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the plan"
    assert page.locator(".skip").bounding_box()["width"] > 50
    seen = set()
    for _press in range(30):
        page.keyboard.press("Tab")
        outline = page.evaluate("getComputedStyle(document.activeElement).outline")
        name = page.evaluate("document.activeElement.tagName")
        if name == "BODY":
            break
        assert outline.endswith("solid 2px"), name
        seen.add(name)
    assert {"A", "SUMMARY"} <= seen
    summary = page.locator("#instances summary", has_text="Settings")
    summary.focus()
    page.keyboard.press("Enter")
    assert page.locator(".settings").is_visible()


@pytest.mark.parametrize("name", ["v100s", "large"])
def test_it_can_be_used_without_eyes(show: Show, name: str) -> None:
    seen = show(name)
    levels = seen.ask("Array.from(document.querySelectorAll('h1, h2, h3, h4'), item => Number(item.tagName[1]))")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert seen.ask("document.documentElement.lang") == "en"
    assert (
        seen.ask("""Array.from(document.querySelectorAll("svg")).filter(item => !item.parentElement.closest("svg"))
        .filter(item => !item.ariaLabel && item.ariaHidden !== "true").length""")
        == 0
    )
    assert seen.ask("Array.from(document.querySelectorAll('table')).filter(item => !item.tHead).length") == 0
    ids = seen.ask("Array.from(document.querySelectorAll('[id]'), item => item.id)")
    assert len(ids) == len(set(ids))
    targets = seen.ask("Array.from(document.querySelectorAll('a'), item => item.getAttribute('href').slice(1))")
    assert set(targets) <= set(ids)


def test_reasons_and_what_was_rejected(show: Show) -> None:
    page = show("v100s").page
    text = page.locator(".choices").inner_text()
    choices = v100s()["instances"][0]["choices"]
    assert all(choice["why"] in text for choice in choices)
    option = page.get_by_text("no node has two GPUs that NVLink joins")
    assert not option.is_visible()
    page.locator("summary", has_text="3 options rejected").click()
    assert option.is_visible()


def test_previews_come_best_first(show: Show) -> None:
    page = show("v100s").page
    page.locator("summary", has_text="4 possible placements, best first").click()
    rows = page.locator(".alternatives tbody tr")
    wanted = v100s()["instances"][0]["alternatives"]
    assert [row.split()[0] for row in rows.all_inner_texts()] == ["1", "2", "3", "4"]
    for row, item in zip(rows.all_inner_texts(), wanted, strict=True):
        assert f"{item['total_bytes'] / GIB:,.1f} GiB" in row
        assert f"{item['token_ms']:,.0f} ms" in row
        assert f"{item['cost']:,.0f}" in row


def test_layers_are_drawn_where_they_lie(show: Show) -> None:
    seen = show("v100s")
    widths = """selector => Array.from(document.querySelectorAll(selector), item => {
        const box = item.getBoundingClientRect();
        return [Number(item.dataset.layers), box.width, box.height];
    })"""
    cut = seen.ask(widths, "#instance-1 .strip rect")
    whole = seen.page.locator("#instance-1 .strip").bounding_box()["width"]
    assert [layers for layers, _width, _height in cut] == [27, 27, 27]
    assert all(width == pytest.approx(whole * layers / 81, abs=1) for layers, width, _height in cut)
    # A tensor split cuts across: every device has all layers, at the full width.
    seen = show("h100s")
    sliced = seen.ask(widths, "#instance-1 .strip rect")
    whole = seen.page.locator("#instance-1 .strip").bounding_box()["width"]
    assert [layers for layers, _width, _height in sliced] == [81] * 4
    assert all(width == pytest.approx(whole, abs=1) for _layers, width, _height in sliced)


def test_nothing_placed_says_so(show: Show) -> None:
    page = show("empty").page
    assert page.locator(".nothing").inner_text() == "No instances are declared: nothing is placed."
    lines = page.locator(".idle li").all_inner_texts()
    assert [line.split()[0] for line in lines] == ["node1", "node2", "node10"]
    assert lines[0].endswith("NVIDIA L4, 22.5 GiB")


def test_the_composed_cluster_is_as_large_as_promised() -> None:
    plan = large()
    assert len(plan["nodes"]) == 64
    assert sum(device["kind"] == "cuda" for found in plan["devices"].values() for device in found) == 512
