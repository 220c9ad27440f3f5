# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The part of the page that shows the instances: what runs where, in numbers and in words, and what was rejected."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.llamacpp.cluster.plugins.module_utils._page_bar import (
    PARTS,
    layer_strip,
    layers_text,
    parts_of,
    total_of,
)
from ansible_collections.llamacpp.cluster.plugins.module_utils._page_html import (
    UNKNOWN,
    Child,
    Markup,
    breakable,
    count,
    gib,
    join,
    mib,
    mib_free,
    tag,
)
from ansible_collections.llamacpp.cluster.plugins.module_utils._page_nodes import chip, listing, placed_on
from ansible_collections.llamacpp.cluster.plugins.module_utils._table import brought, endpoint, host_free

# As the planner's reasons call them.
STRATEGIES = {
    "one-device": "one device",
    "one-node": "one node",
    "tensor-split": "tensor split over NVLink",
    "layer-split": "layer split on one node",
    "rpc": "layer split over nodes (RPC)",
    "partial-offload": "partial offload",
    "cpu": "CPU only",
}
SUBJECTS = {"quant": "quantisation"}


def overview(plan: Mapping[str, Any], numbers: Mapping[str, int], addresses: Mapping[str, str]) -> Markup:
    """Return the table with a line an instance."""
    headings = ("instance", "model", "placement", "where", "context", "needs", "endpoint")
    rows = [
        tag(
            "tr",
            tag("th", chip(item["name"], numbers), scope="row"),
            tag("td", breakable(_model_name(item)), data_label="model"),
            tag("td", badge(item), class_="whole" if item["strategy"] in STRATEGIES else None, data_label="placement"),
            tag("td", placed_on(item), data_label="where"),
            tag("td", _slots(item), class_="whole", data_label="context"),
            tag("td", gib(_needs(item)), class_="number", data_label="needs"),
            tag("td", tag("code", breakable(endpoint(item, addresses))), data_label="endpoint"),
            data_find=_find(item),
        )
        for item in plan["instances"]
    ]
    head = tag("tr", *(tag("th", word, scope="col", class_="number" if word == "needs" else None) for word in headings))
    return tag(
        "section",
        tag("h2", "Overview"),
        tag("table", tag("thead", head), tag("tbody", *rows), class_="lined overview"),
        id="overview",
        class_="panel",
    )


def instances_section(plan: Mapping[str, Any], numbers: Mapping[str, int], addresses: Mapping[str, str]) -> Markup:
    """Return the section with a description of each instance."""
    articles = [_instance(plan, item, numbers[item["name"]], addresses) for item in plan["instances"]]
    return tag("section", tag("h2", "Instances"), *articles, id="instances")


def badge(instance: Mapping[str, Any]) -> Markup:
    """Return the strategy of an instance as a small label."""
    return tag("span", strategy_name(instance["strategy"]), class_="badge")


def strategy_name(strategy: str) -> str:
    """Return what people call a strategy."""
    return STRATEGIES.get(strategy, strategy)


def _find(instance: Mapping[str, Any]) -> str:
    """Return the words by which the filter finds an instance."""
    words = [instance["name"], instance["model"]["file"], instance["head"], *instance["nodes"]]
    return " ".join(map(str, words)).lower()


def _model_name(instance: Mapping[str, Any]) -> str:
    return str(instance["model"]["file"]).rsplit("/", 1)[-1]


def _slots(instance: Mapping[str, Any]) -> str:
    return "%s \u00d7 %s" % (count(instance["parallel"], "slot"), format(instance["context"], ",") + " tokens")


def _needs(instance: Mapping[str, Any]) -> int | None:
    """Return the bytes that an instance takes of all devices and the head's own memory; None when not known."""
    host = _host(instance)
    shares = [*instance["devices"], *([host] if host else [])]
    totals = [total_of(share) for share in shares]
    return None if None in totals else sum(total for total in totals if total is not None)


def _host(instance: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return what an instance takes of the head's own memory, unless one of its devices is that memory."""
    if any(device["host"] for device in instance["devices"]):
        return None
    host: Mapping[str, Any] | None = instance["host_memory"]
    return host


def _instance(
    plan: Mapping[str, Any], instance: Mapping[str, Any], number: int, addresses: Mapping[str, str]
) -> Markup:
    tensor = instance["settings"]["split_mode"] == "tensor"
    return tag(
        "article",
        tag(
            "header",
            tag("h3", tag("span", str(number), class_="index"), instance["name"]),
            badge(instance),
            _exactness(instance),
            tag("code", endpoint(instance, addresses), class_="endpoint"),
        ),
        tag("p", instance["why"], class_="why"),
        _notes(instance),
        _facts(instance, plan["models"].get(instance["model"]["name"])),
        _placement(instance, tensor, host_free(plan, instance)),
        _choices(instance),
        _alternatives(instance["alternatives"]),
        _settings(instance["settings"]),
        _commands(instance),
        class_="card instance",
        id="instance-%d" % number,
        data_find=_find(instance),
    )


def _exactness(instance: Mapping[str, Any]) -> Markup:
    if _needs(instance) is None:
        return tag("span", "sizes unknown", class_="badge warn", title="The model's header was not read.")
    if instance["exact"]:
        return tag("span", "exact", class_="badge calm", title="Counted as llama.cpp counts for this architecture.")
    return tag("span", "an estimate", class_="badge warn")


def _notes(instance: Mapping[str, Any]) -> Markup | None:
    """Return what the estimate says of itself."""
    notes = [tag("li", note) for note in instance["notes"]]
    return tag("ul", *notes, class_="notes", aria_label="Notes") if notes else None


def _facts(instance: Mapping[str, Any], stored: Mapping[str, Any] | None) -> Markup:
    """Return what an instance is; ``stored``: its model as the plan's models say it."""
    model = instance["model"]
    workers = ["%s (%s:%s)" % (worker["node"], worker["host"], worker["port"]) for worker in instance["workers"]]
    layers = None if model["n_layers"] is None else "%s + output" % count(model["n_layers"], "layer")
    key = ", with an API key" if instance["api_key_file"] else ""
    facts: list[tuple[str, Child]] = [
        ("model", join([breakable(_model_name(instance)), *(", " + item for item in _model_facts(model, layers))])),
        ("files", breakable(brought(stored)) if stored else "unknown"),
        ("head", "%s, port %s%s" % (instance["head"], instance["port"], key)),
        ("workers", ", ".join(workers) or "none"),
        ("context", _slots(instance)),
        ("unit", breakable(instance["unit"])),
    ]
    return tag("dl", *(tag("div", tag("dt", word), tag("dd", value)) for word, value in facts), class_="facts")


def _model_facts(model: Mapping[str, Any], layers: str | None) -> list[str]:
    found = [model["architecture"], layers, gib(model["bytes"]) if model["bytes"] is not None else None]
    return [str(fact) for fact in found if fact]


def _placement(instance: Mapping[str, Any], tensor: bool, left: int | None) -> Markup:
    """Return the strip of layers and the table of devices, exact to the MiB; ``left``: bytes of the head's memory."""
    headings = ("node", "device", "layers", *PARTS, "total", "free")
    rows = [
        _share(device["node"], device["device"], _hardware(device), layers_text(device), device, device["free_bytes"])
        for device in instance["devices"]
    ]
    host = _host(instance)
    if host:
        rows.append(_share(instance["head"], "host memory", "", "", host, left))
    head = tag(
        "tr", *(tag("th", word, scope="col", class_="number" if word in headings[3:] else None) for word in headings)
    )
    strip = layer_strip(instance["devices"], tensor)
    caption = "Each device holds a slice of every layer" if tensor else "Layers in the order of the devices"
    return tag(
        "div",
        tag("h4", caption if strip else "Devices"),
        strip,
        tag("table", tag("thead", head), tag("tbody", *rows), class_="lined shares"),
        class_="placement",
    )


def _hardware(device: Mapping[str, Any]) -> str:
    """Return what a device is, and what its own node calls it where the head has another name for it."""
    local, name = device["local_device"], str(device["name"])
    return name if local == device["device"] else "%s, %s" % (local, name)


def _share(node: str, device: str, hardware: str, layers: str, use: Mapping[str, Any], free: int | None) -> Markup:
    cells = [
        tag("th", node, scope="row"),
        tag("td", device, tag("span", hardware, class_="quiet hardware") if hardware else None, data_label="device"),
        tag("td", layers, data_label="layers"),
        *(tag("td", mib(size), class_="number", data_label=part) for part, size in parts_of(use).items()),
        tag("td", tag("b", mib(total_of(use))), class_="number", data_label="total"),
        tag("td", mib_free(free), class_="number", data_label="free"),
    ]
    return tag("tr", *cells)


def _choices(instance: Mapping[str, Any]) -> Markup | None:
    """Return the reasons in words; what was rejected folds out. What already stands above is not said again."""
    items = [
        tag(
            "div",
            tag("dt", SUBJECTS.get(choice["what"], choice["what"])),
            tag(
                "dd",
                tag("b", choice["chosen"]),
                tag("span", choice["why"], class_="reason") if choice["why"] != instance["why"] else None,
                _rejected(choice["rejected"]),
            ),
        )
        for choice in instance["choices"]
    ]
    return tag("div", tag("h4", "Reasons"), tag("dl", *items, class_="choices")) if items else None


def _rejected(options: Sequence[Mapping[str, Any]]) -> Markup | None:
    if not options:
        return None
    lines = [tag("li", tag("b", option["option"]), tag("span", option["why"], class_="reason")) for option in options]
    return tag("details", tag("summary", "%s rejected" % count(len(lines), "option")), tag("ul", *lines))


def _alternatives(alternatives: Sequence[Mapping[str, Any]]) -> Markup | None:
    """Return the placements that would be possible, best first."""
    if not alternatives:
        return None
    headings = ("rank", "placement", "where", "quantisation", "context", "needs", "headroom", "a token", "cost", "why")
    numeric = ("rank", "context", "needs", "headroom", "a token", "cost")
    rows = []
    for item in alternatives:
        values: dict[str, Child] = {
            "rank": str(item["rank"]),
            "placement": strategy_name(item["strategy"]),
            "where": _where(item),
            "quantisation": item["quant"] or UNKNOWN,
            "context": format(item["ctx_size"], ","),
            "needs": gib(item["total_bytes"]),
            "headroom": gib(item["headroom_bytes"]),
            "a token": "%s ms" % format(item["token_ms"], ",.0f"),
            "cost": format(item["cost"], ",.0f"),
            "why": item["why"],
        }
        cells = [
            tag("td", values[word], class_="number" if word in numeric else None, data_label=word) for word in headings
        ]
        rows.append(tag("tr", *cells, class_="chosen" if item["chosen"] else None))
    head = tag("tr", *(tag("th", word, scope="col", class_="number" if word in numeric else None) for word in headings))
    summary = "The only possible placement" if len(rows) == 1 else "%d possible placements, best first" % len(rows)
    return tag(
        "details",
        tag("summary", summary),
        tag("table", tag("thead", head), tag("tbody", *rows), class_="lined alternatives"),
    )


def _where(item: Mapping[str, Any]) -> str:
    """Return nodes and devices of a placement; over several nodes their names would only repeat each other."""
    many = len(item["nodes"]) > 1
    devices = count(item["devices"], "device") if many else listing(item["device_names"])
    return "%s (%s)" % (", ".join(item["nodes"]), devices)


def _settings(settings: Mapping[str, Any]) -> Markup:
    items = [
        tag("div", tag("dt", tag("code", name)), tag("dd", _setting(value))) for name, value in sorted(settings.items())
    ]
    return tag("details", tag("summary", "Settings"), tag("dl", *items, class_="settings"))


def _setting(value: Any) -> str:
    if value is None:
        return "llama-server's own"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, (list, tuple)):
        return " : ".join(map(str, value)) or "none"
    return str(value)


def _commands(instance: Mapping[str, Any]) -> Markup:
    """Return what the units of an instance start, ready to be copied."""
    blocks = [_command("%s, head" % instance["head"], "llama-server", instance["args"])]
    blocks += [
        _command("%s, worker" % worker["node"], "ggml-rpc-server", worker["args"]) for worker in instance["workers"]
    ]
    summary = "Command line" if len(blocks) == 1 else "Command lines"
    return tag("details", tag("summary", summary), *blocks)


def _command(where: str, program: str, arguments: Sequence[Any]) -> Markup:
    """Return a command line, an option a line."""
    lines = [program]
    for argument in map(str, arguments):
        word = shlex.quote(argument)
        if argument.startswith("-"):
            lines.append("  " + word)
        else:
            lines[-1] += " " + word
    return tag(
        "figure",
        tag("figcaption", where, tag("button", "Copy", type="button", hidden=True, data_copy=True)),
        tag("pre", tag("code", " \\\n".join(lines)), tabindex=0),
        class_="command",
    )
