"""Frame of the page: one string.Template with its style sheet inside, no script and no network."""

import string

PAGE = string.Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>
:root { $light_variables; --font: system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
  --mono: ui-monospace, "SF Mono", Menlo, Consolas, monospace; --link: #0060a8;
  --card: #f5f5f7; --note: #fff6e5; --note-edge: #e0a63a; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { $dark_variables; --link: #7cc0ff;
  --card: #1f1f23; --note: #2b2415; --note-edge: #a97b22; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--surface); color: var(--ink); font: 16px/1.55 var(--font); }
main { max-width: 1040px; margin: 0 auto; padding: 32px clamp(16px, 3vw, 24px) 80px; }
h1 { font-size: clamp(1.5rem, 4vw, 2rem); line-height: 1.15; margin: 0 0 8px; }
h2 { font-size: 1.4rem; line-height: 1.25; letter-spacing: -0.01em; margin: 56px 0 8px;
  padding-top: 12px; border-top: 1px solid var(--rule); }
h3 { font-size: 1.05rem; margin: 36px 0 6px; }
p, ul, dl { max-width: 76ch; margin: 0 0 10px; }
a { color: var(--link); text-decoration: none; } a:hover { text-decoration: underline; }
.eyebrow, .question, .caption, .source, .axes, .missing, summary span { color: var(--muted); }
.eyebrow { font-size: 0.85rem; margin: 0 0 6px; }
.answer { font-size: 1.08rem; line-height: 1.5; margin: 16px 0; padding: 0; list-style: none; }
.answer li { margin: 0 0 10px; }
.status { background: var(--note); border-left: 3px solid var(--note-edge); border-radius: 4px;
  padding: 10px 16px; margin: 16px 0; max-width: 78ch; font-size: 0.92rem; }
.status p { margin: 0; } .status ul { margin: 0; padding-left: 1.2em; }
.status details { border: 0; padding: 4px 0 0; }
.arms { display: flex; flex-wrap: wrap; gap: 4px 18px; list-style: none; padding: 0;
  max-width: none; font-size: 0.9rem; }
.arms code { color: var(--muted); font-size: 0.85em; margin-left: 5px; }
.dot { display: inline-block; width: 11px; height: 11px; border-radius: 50%;
  background: var(--dot); border: 3px solid var(--dot); margin-right: 3px; }
.hollow { background: none; }
nav ul { display: grid; grid-template-columns: repeat(auto-fill, minmax(15em, 1fr)); gap: 4px 24px;
  padding: 0; margin: 28px 0 0; list-style: none; max-width: none; font-size: 0.92rem; }
nav li li { font-size: 0.95em; } nav ul ul { display: block; margin: 0 0 8px; padding-left: 1em; }
figure { display: grid; gap: 14px 16px; margin: 10px 0 0; align-items: start;
  grid-template-columns: repeat(var(--across), minmax(0, 1fr)); }
figure svg { display: block; width: 100%; height: auto; overflow: visible; stroke-linejoin: round; }
figure svg.key { grid-column: 1 / -1; max-width: 480px; }
figure.across-1 svg { max-width: 600px; }
figure.across-1 { --across: 1; } figure.across-2 { --across: 2; } figure.across-3 { --across: 3; }
figure.across-4 { --across: 4; } figure.across-6 { --across: 6; }
.caption { font-size: 0.92rem; } .axes { font-size: 0.85rem; margin: 4px 0 0; }
.source { font-size: 0.82rem; margin-top: 8px; }
.missing { font-size: 0.86rem; padding-left: 1.2em; }
.nothing { background: var(--card); border-radius: 6px; padding: 16px; color: var(--muted); }
.scroll { overflow-x: auto; -webkit-overflow-scrolling: touch; margin: 12px 0; }
table { border-collapse: collapse; font-size: 0.86rem; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 14px 6px 0; text-align: right; white-space: nowrap; vertical-align: baseline;
  border-bottom: 1px solid var(--rule); font-weight: 400; }
thead th { font-weight: 600; color: var(--muted); vertical-align: bottom; white-space: normal;
  min-width: 5.6em; line-height: 1.3; }
th:first-child { text-align: left; position: sticky; left: 0; background: var(--surface);
  white-space: normal; min-width: 7.5em; }
table.clauses :is(td, th):nth-child(2) { white-space: normal; min-width: 17em; text-align: left; }
table.clauses th:first-child { min-width: 3.5em; }
table.sides :is(td, th) { white-space: normal; min-width: 0; padding-right: 9px; }
td small { display: block; color: var(--muted); font-size: 0.82em; }
code, pre { font-family: var(--mono); font-size: 0.86em; }
code { overflow-wrap: anywhere; }
pre { background: var(--card); border-radius: 6px; padding: 12px 14px; overflow-x: auto; }
details { border-bottom: 1px solid var(--rule); padding: 9px 0; }
figure + details { border: 0; font-size: 0.86rem; padding: 6px 0 0; }
summary { cursor: pointer; } summary span { font-size: 0.9em; }
dl { display: grid; grid-template-columns: 9.5em minmax(0, 1fr); gap: 5px 14px; margin: 12px 0;
  font-size: 0.9rem; max-width: 88ch; }
dt { color: var(--muted); } dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 720px) {
  figure[class] { --across: 1; } figure.across-4 { --across: 2; } figure.across-6 { --across: 3; }
  dl { grid-template-columns: 1fr; gap: 0; } dd { margin: 0 0 8px; }
}
@media print { details, figure { break-inside: avoid; } }
</style>
</head>
<body>
<main>
<header>
<p class="eyebrow">$eyebrow</p>
<h1>$title</h1>
<p class="question">$question</p>
<ul class="answer">$answer</ul>
<div class="status">$status</div>
<ul class="arms">$arms</ul>
</header>
$pareto
<section id="overview"><h2>At a glance</h2>$overview</section>
<nav aria-label="Contents"><ul>$contents</ul></nav>
$sections
</main>
</body>
</html>
""")
