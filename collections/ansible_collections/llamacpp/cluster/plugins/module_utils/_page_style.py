# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the page looks like, and the little that it does. Both stand in the page, whose policy names their hashes.

Fills of the bars are from the palette of Okabe and Ito, which people with any kind of colour blindness can tell apart
(https://jfly.uni-koeln.de/color/); in the dark scheme they are lighter. Spaces are 4, 8, 12, 16, 24, 32, 48 px.
Colours of text have a contrast of 4.5 or more with what they stand on; tests/page measures it.
"""

from __future__ import annotations

STYLE = """
:root {
  color-scheme: light dark;
  --ground: #f6f6f4; --surface: #ffffff; --raised: #f1f2f3; --line: #dfe1e5; --edge: #868d98;
  --text: #1b1e23; --quiet: #59606c; --accent: #00568c; --on-accent: #ffffff; --warn: #8f3a00; --warn-ground: #fdeede;
  --model: #0072b2; --on-model: #ffffff; --context: #56b4e9; --compute: #e69f00; --overhead: #cc79a7;
  --tone0: #d4e4f1; --tone1: #e6ebf0; --on-tone: #1b1e23;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --ground: #121418; --surface: #1b1e24; --raised: #242830; --line: #31363f; --edge: #7c8594;
    --text: #e8eaed; --quiet: #a5adb9; --accent: #86c5f2; --on-accent: #10202c; --warn: #ffb680; --warn-ground: #3a2614;
    --model: #3f9bd8; --on-model: #06151f; --context: #8fd0f5; --compute: #f2b632; --overhead: #dd9bc2;
    --tone0: #26455c; --tone1: #343c47; --on-tone: #e8eaed;
  }
}
* { box-sizing: border-box; }
html { scroll-padding-top: 64px; -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--ground); color: var(--text); font-variant-numeric: tabular-nums;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", Arial, sans-serif;
}
code, pre { font: 13px/1.55 ui-monospace, "SF Mono", "Cascadia Mono", "JetBrains Mono", Menlo, Consolas, monospace; }
h1, h2, h3, h4, p, ul, dl, dd, figure, pre { margin: 0; }
h1 { font-size: 28px; line-height: 1.2; font-weight: 650; letter-spacing: -0.015em; }
h2 { font-size: 20px; line-height: 1.3; font-weight: 650; margin-bottom: 16px; letter-spacing: -0.01em; }
h3 { font-size: 17px; line-height: 1.4; font-weight: 650; overflow-wrap: anywhere; }
h4 { font-size: 13px; font-weight: 600; color: var(--quiet); margin-bottom: 8px; }
ul { padding: 0; list-style: none; }
a { color: var(--accent); text-decoration: none; }
a:hover { text-decoration: underline; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; border-radius: 4px; }
.quiet { color: var(--quiet); }
.unseen, .skip:not(:focus) {
  position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap;
}
.skip:focus { position: fixed; top: 8px; left: 8px; z-index: 3; padding: 8px 16px; background: var(--surface); }
[hidden] { display: none !important; }

.masthead, nav > div, main, .colophon { max-width: 1280px; margin: 0 auto; padding: 0 24px; }
.masthead { padding-top: 32px; padding-bottom: 24px; }
.masthead p { color: var(--quiet); margin-top: 4px; overflow-wrap: anywhere; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(160px, 1fr)); gap: 12px; margin-top: 24px; }
.tiles > div { background: var(--surface); border: 1px solid var(--line); border-radius: 8px; padding: 12px 16px; }
.tiles dt { font-size: 13px; color: var(--quiet); }
.tiles dd { font-size: 20px; font-weight: 650; line-height: 1.4; letter-spacing: -0.01em; }
.tiles dd + dd { font-size: 13px; font-weight: 400; color: var(--quiet); }
.masthead .nothing {
  padding: 16px; border-radius: 8px; margin-top: 24px; background: var(--warn-ground); color: var(--warn);
}
nav { position: sticky; top: 0; z-index: 2; background: var(--ground); border-bottom: 1px solid var(--line); }
nav > div { display: flex; align-items: center; gap: 4px 24px; min-height: 48px; }
nav a { padding: 12px 0; }
nav label { margin-left: auto; display: flex; align-items: center; gap: 8px; color: var(--quiet); font-size: 13px; }
nav input {
  font: inherit; font-size: 15px; color: var(--text); background: var(--surface);
  border: 1px solid var(--edge); border-radius: 6px; padding: 4px 8px; width: 14em; min-width: 0; max-width: 45vw;
}
nav output { color: var(--quiet); font-size: 13px; min-width: 8em; }
main > section { margin-top: 32px; }
.colophon { padding-top: 32px; padding-bottom: 48px; color: var(--quiet); font-size: 13px; }

.card, .panel > table { background: var(--surface); border: 1px solid var(--line); border-radius: 8px; }
.card { padding: 16px; min-width: 0; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(560px, 100%), 1fr)); gap: 16px; }
.cards + .wide { margin-top: 16px; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 24px; margin-bottom: 16px; font-size: 13px; }
.legend li { display: flex; align-items: baseline; gap: 6px; }
.swatch { display: inline-block; width: 10px; height: 10px; border-radius: 2px; margin-right: 6px; flex: none; }
.legend .swatch { margin-right: 0; }
.swatch.model { background: var(--model); } .swatch.context { background: var(--context); }
.swatch.compute { background: var(--compute); } .swatch.overhead { background: var(--overhead); }
.swatch.margin { background: repeating-linear-gradient(135deg, var(--edge) 0 1.5px, var(--surface) 1.5px 4px); }
.swatch.free { background: var(--raised); box-shadow: inset 0 0 0 1px var(--edge); }
.swatch, .bar, .strip, .index {
  print-color-adjust: exact; -webkit-print-color-adjust: exact; forced-color-adjust: none;
}
.address { font-size: 13px; font-weight: 400; margin-left: 12px; }
.index {
  display: inline-block; min-width: 20px; padding: 0 5px; margin-right: 6px; border-radius: 4px; text-align: center;
  font-size: 12px; line-height: 20px; font-weight: 650; background: var(--model); color: var(--on-model);
}
.badge {
  display: inline-block; padding: 0 8px; border-radius: 10px; font-size: 12px; line-height: 20px;
  overflow-wrap: anywhere; background: var(--accent); color: var(--on-accent);
}
.badge.calm { background: var(--raised); color: var(--quiet); }
.badge.warn { background: var(--warn-ground); color: var(--warn); }

table { border-collapse: collapse; width: 100%; font-size: 13px; }
th { text-align: left; font-weight: 600; }
thead th { color: var(--quiet); font-weight: 400; white-space: nowrap; }
td, th { padding: 6px 8px; vertical-align: baseline; overflow-wrap: anywhere; }
.number, .whole, thead th { overflow-wrap: normal; }
.number, .memory td { text-align: right; white-space: nowrap; }
.lined td, .lined th { border-top: 1px solid var(--line); }
.lined thead th { border-top: 0; }
.overview { border-collapse: separate; border-spacing: 0; }
.overview td, .overview th { padding: 8px 12px; }
.overview code { color: var(--quiet); }
.shares .hardware { margin-left: 8px; }
.memory { margin: 8px -8px 0; width: calc(100% + 16px); }
.memory thead th:not(:first-child) { text-align: right; }
.memory td, .memory thead th { padding-top: 2px; padding-bottom: 2px; width: 11%; }
.memory th:first-child { width: auto; }
.memory .use th { font-weight: 400; padding-top: 2px; padding-bottom: 2px; overflow-wrap: anywhere; }
.memory .device th { padding-top: 12px; }
.memory .sum { font-weight: 600; }
.role { margin-left: 8px; }
.chip { color: inherit; display: inline-flex; align-items: baseline; overflow-wrap: anywhere; }
.chip .index { flex: none; }
.overview .chip { min-width: 9em; }
.whole { white-space: nowrap; }
.line { display: flex; flex-wrap: wrap; gap: 0 8px; align-items: baseline; font-weight: 400; }
.balance { margin-left: auto; color: var(--quiet); }
.balance b { color: var(--text); font-weight: 600; }
.over { color: var(--warn); }
.bar { display: block; width: 100%; height: 22px; margin-top: 4px; overflow: visible; }
.bar rect { stroke: var(--surface); stroke-width: 1px; }
.bar .model { fill: var(--model); } .bar .context { fill: var(--context); }
.bar .compute { fill: var(--compute); } .bar .overhead { fill: var(--overhead); }
.bar .track { fill: none; stroke: var(--edge); } .bar .free { fill: var(--raised); stroke: none; }
.bar .margin { fill: url(#hatch); }
.bar .cut { stroke: var(--text); stroke-width: 1.5px; }
.bar .limit { stroke: var(--warn); stroke-width: 2px; stroke-dasharray: 3 2; }
.bar text, .strip text { font-size: 12px; text-anchor: middle; dominant-baseline: central; }
.bar text { fill: var(--on-model); font-weight: 650; pointer-events: none; }
.hatch-ground { fill: var(--surface); } .hatch-line { stroke: var(--edge); stroke-width: 1.5; }
.ports { margin-top: 16px; padding-top: 12px; border-top: 1px solid var(--line); font-size: 13px; color: var(--quiet); }
.ports h4 { margin-bottom: 4px; }
.ports li { overflow-wrap: anywhere; } .ports b { color: var(--text); display: inline-block; min-width: 4em; }
.idle { columns: 26em auto; column-gap: 24px; margin-top: 12px; font-size: 13px; }
.idle li { break-inside: avoid; padding: 2px 0; }

.instance { padding: 24px; }
.instance + .instance { margin-top: 16px; }
.instance header { display: flex; flex-wrap: wrap; gap: 4px 12px; align-items: center; }
.instance .index { font-size: 13px; line-height: 22px; margin-right: 8px; }
.endpoint { margin-left: auto; color: var(--quiet); overflow-wrap: anywhere; }
.notes { margin-top: 4px; font-size: 13px; color: var(--quiet); }
.notes li { overflow-wrap: anywhere; }
.notes li::before { content: "\\2022\\00a0"; }
.chosen td { font-weight: 600; }
.alternatives td:last-child { min-width: 9em; }
.why { margin-top: 8px; max-width: 80ch; overflow-wrap: anywhere; }
.facts {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(200px, 100%), 1fr)); gap: 12px 24px;
  margin: 16px 0 24px; font-size: 13px;
}
dt { color: var(--quiet); } dd { overflow-wrap: anywhere; }
.placement + * { margin-top: 24px; }
.strip { display: block; width: 100%; border-radius: 4px; overflow: hidden; margin-bottom: 8px; }
.strip rect { stroke: var(--surface); stroke-width: 1.5px; } .strip text { fill: var(--on-tone); pointer-events: none; }
.tone0 rect { fill: var(--tone0); } .tone1 rect { fill: var(--tone1); }
.choices > div {
  display: grid; grid-template-columns: 9em 1fr; gap: 0 16px; padding: 8px 0; border-top: 1px solid var(--line);
}
.choices b { margin-right: 8px; } .choices details { border: 0; margin: 0; padding: 4px 0 0; font-size: 13px; }
.choices details summary { font-weight: 400; color: var(--quiet); }
.choices li { padding: 4px 0 4px 16px; } .reason { color: var(--quiet); }
.instance > details { border-top: 1px solid var(--line); padding-top: 12px; margin-top: 12px; min-width: 0; }
summary { cursor: pointer; font-weight: 600; font-size: 13px; }
details > table, details > dl, details > figure { margin-top: 12px; }
.settings {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(min(220px, 100%), 1fr)); gap: 4px 24px;
  font-size: 13px;
}
.settings > div {
  display: flex; justify-content: space-between; gap: 12px; border-bottom: 1px solid var(--line); padding: 4px 0;
}
.settings dd { text-align: right; }
figcaption {
  display: flex; justify-content: space-between; align-items: center; min-height: 32px;
  font-size: 13px; color: var(--quiet);
}
pre { background: var(--raised); border-radius: 6px; padding: 12px 16px; overflow-x: auto; }
button {
  font: inherit; color: var(--accent); background: var(--surface); border: 1px solid var(--edge); border-radius: 6px;
  padding: 2px 12px; cursor: pointer;
}

@media screen and (min-width: 901px) {
  .overview [data-label="model"] { min-width: 12em; }
}
@media screen and (max-width: 900px) {
  .masthead, nav > div, main, .colophon { padding-left: 16px; padding-right: 16px; }
  nav output { display: none; }
  .instance { padding: 16px; }
  .endpoint { margin-left: 0; width: 100%; }
  .lined thead { display: none; }
  .lined tr {
    display: grid; grid-template-columns: repeat(auto-fill, minmax(112px, 1fr)); gap: 4px 12px;
    padding: 12px 0; border-top: 1px solid var(--line);
  }
  .overview tr { padding: 12px; }
  .lined tbody tr:first-child { border-top: 0; }
  .lined tr > * { border: 0; padding: 0; text-align: left; white-space: normal; overflow-wrap: anywhere; }
  .lined tr > th, .lined [data-label="endpoint"], .lined [data-label="why"] { grid-column: 1 / -1; }
  .lined [data-label]:not(:empty)::before {
    content: attr(data-label); display: block; color: var(--quiet); font-weight: 400; font-size: 12px;
  }
}
@media screen and (max-width: 600px) {
  .cards { grid-template-columns: 100%; }
  .hardware { display: block; margin-left: 0 !important; }
  .memory thead { display: none; }
  .memory, .memory tbody { display: block; }
  .memory tr { display: grid; grid-template-columns: repeat(3, 1fr); }
  .memory .device { display: block; }
  .memory .device th { display: block; }
  .memory .use th { grid-column: 1 / -1; }
  .memory td { text-align: left; width: auto; }
  .memory td::before {
    content: attr(data-label); display: block; color: var(--quiet); font-weight: 400; font-size: 12px;
  }
  .choices > div { grid-template-columns: 100%; }
  nav > div { flex-wrap: wrap; padding-bottom: 4px; }
  nav label { margin-left: 0; }
}
@media print {
  :root { --ground: #fff; }
  body { font-size: 11px; }
  table, pre, code, summary, figcaption, .facts, .notes, .ports, .settings, .legend, .colophon, .choices details {
    font-size: 10px;
  }
  td, th { padding: 3px 4px; }
  .masthead, main, .colophon { padding: 0; }
  nav, button, .skip { display: none !important; }
  .masthead, main > section { margin-top: 16px; }
  .cards { display: block; }
  .card, .instance { padding: 12px; margin-top: 12px; }
  .card, tr, figure { break-inside: avoid; }
  .instance { break-inside: auto; }
  h2, h3, h4 { break-after: avoid; }
  details::details-content { content-visibility: visible; block-size: auto; }
  pre { white-space: pre-wrap; overflow-wrap: anywhere; }
}
"""

# Everything can be read without it: it filters, copies, and folds everything out for a printer.
SCRIPT = """
(function () {
  "use strict";
  var box = document.getElementById("filter"), said = document.getElementById("found");
  var items = Array.prototype.slice.call(document.querySelectorAll("[data-find]"));
  if (box) {
    box.parentNode.hidden = false;
    box.addEventListener("input", function () {
      var words = box.value.toLowerCase().split(/\\s+/).filter(Boolean), shown = 0;
      items.forEach(function (item) {
        var text = item.getAttribute("data-find");
        item.hidden = !words.every(function (word) { return text.indexOf(word) >= 0; });
        shown += item.hidden ? 0 : 1;
      });
      said.textContent = words.length ? shown + " of " + items.length + " shown" : "";
    });
  }
  Array.prototype.forEach.call(document.querySelectorAll("[data-copy]"), function (button) {
    button.hidden = !navigator.clipboard;
    button.addEventListener("click", function () {
      var text = button.closest("figure").querySelector("code").textContent;
      navigator.clipboard.writeText(text).then(function () {
        button.textContent = "Copied";
        setTimeout(function () { button.textContent = "Copy"; }, 2000);
      });
    });
  });
  window.addEventListener("beforeprint", function () {
    Array.prototype.forEach.call(document.querySelectorAll("details"), function (item) { item.open = true; });
  });
}());
"""
