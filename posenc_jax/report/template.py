"""The page's frame: one string.Template, its style sheet inside, no script, no network."""

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
  --mono: ui-monospace, "SF Mono", Menlo, Consolas, monospace;
  --card: #f5f5f7; --note: #fff6e5; --note-edge: #e0a63a; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { $dark_variables;
  --card: #1f1f23; --note: #2b2415; --note-edge: #a97b22; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--surface); color: var(--ink); font: 16px/1.55 var(--font); }
main { max-width: 1040px; margin: 0 auto; padding: 40px 24px 80px; }
h1 { font-size: 2rem; line-height: 1.15; letter-spacing: -0.02em; margin: 0 0 10px; }
h2 { font-size: 1.3rem; line-height: 1.25; letter-spacing: -0.01em; margin: 64px 0 8px; }
h3 { font-size: 1rem; margin: 28px 0 6px; }
p, ul, dl { max-width: 70ch; margin: 0 0 12px; }
.eyebrow { color: var(--muted); font-size: 0.85rem; margin: 0 0 6px; }
.question { font-size: 1.15rem; line-height: 1.45; color: var(--muted); }
.reading { font-size: 1.1rem; line-height: 1.5; }
.banner { background: var(--note); border-left: 3px solid var(--note-edge); border-radius: 4px;
  padding: 12px 16px; margin: 20px 0 28px; max-width: 78ch; }
.banner p { margin: 0 0 4px; } .banner ul { margin: 4px 0; padding-left: 1.2em; }
.arms { display: flex; flex-wrap: wrap; gap: 6px 18px; list-style: none; padding: 0; margin: 20px 0 0;
  max-width: none; font-size: 0.92rem; }
.arms li { display: flex; align-items: center; gap: 7px; }
.arms code { color: var(--muted); font-size: 0.85em; }
th .dot { margin-right: 4px; }
.dot { display: inline-block; width: 11px; height: 11px; border-radius: 50%; flex: none;
  background: var(--dot); border: 3px solid var(--dot); }
.hollow { background: none; }
figure { margin: 16px 0 0; }
figure svg { display: block; width: 100%; height: auto; overflow: visible; stroke-linejoin: round; }
svg.narrow { display: none !important; }
.caption { color: var(--muted); font-size: 0.92rem; max-width: 78ch; }
.source { color: var(--muted); font-size: 0.8rem; margin-top: 8px; }
.missing { color: var(--muted); font-size: 0.86rem; padding-left: 1.2em; }
.nothing { background: var(--card); border-radius: 6px; padding: 20px; color: var(--muted); }
.scroll { overflow-x: auto; -webkit-overflow-scrolling: touch; margin: 12px 0; }
table { border-collapse: collapse; font-size: 0.86rem; font-variant-numeric: tabular-nums; }
th, td { padding: 7px 14px 7px 0; text-align: right; white-space: nowrap; vertical-align: baseline;
  border-bottom: 1px solid var(--rule); }
thead th { font-weight: 600; color: var(--muted); vertical-align: bottom; white-space: normal;
  min-width: 5.6em; line-height: 1.3; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0;
  background: var(--surface); white-space: normal; min-width: 7.5em; }
table.clauses :is(td, th):nth-child(2) { white-space: normal; min-width: 17em; text-align: left; }
table.clauses :is(td, th):first-child { min-width: 3.5em; }
table.sides td, table.sides th { white-space: normal; min-width: 0; padding-right: 9px; }
td small { display: block; color: var(--muted); font-size: 0.82em; }
code, pre { font-family: var(--mono); font-size: 0.86em; }
code { overflow-wrap: anywhere; }
pre { background: var(--card); border-radius: 6px; padding: 12px 14px; overflow-x: auto; margin: 8px 0; }
details { border-bottom: 1px solid var(--rule); padding: 10px 0; }
summary { cursor: pointer; } summary span { color: var(--muted); font-size: 0.9em; }
details dl { display: grid; grid-template-columns: 9.5em 1fr; gap: 5px 14px; margin: 12px 0;
  font-size: 0.9rem; max-width: none; }
dt { color: var(--muted); } dd { margin: 0; overflow-wrap: anywhere; }
dl.definitions { display: grid; grid-template-columns: 6.5em 1fr; gap: 8px 14px; font-size: 0.92rem;
  max-width: 80ch; }
@media (max-width: 720px) {
  main { padding: 24px 16px 60px; }
  h1 { font-size: 1.6rem; } h2 { margin-top: 48px; }
  .question, .reading { font-size: 1.02rem; }
  svg.wide { display: none !important; } svg.narrow { display: block !important; }
  details dl, dl.definitions { grid-template-columns: 1fr; gap: 0; }
  details dd, dl.definitions dd { margin: 0 0 8px; }
}
@media print { details { break-inside: avoid; } figure { break-inside: avoid; } }
</style>
</head>
<body>
<main>
<header>
<p class="eyebrow">$eyebrow</p>
<h1>$title</h1>
<p class="question">$question</p>
<div class="banner">$banner</div>
<div class="reading">$reading</div>
<ul class="arms">$arms</ul>
</header>
$verdict
$figures
$other_lengths
<section>
<h2>Numbers</h2>
$numbers
</section>
<section>
<h2>How each was obtained</h2>
<h3>Definitions</h3>
$definitions
<h3>Runs</h3>
$runs
$not_measured
</section>
</main>
</body>
</html>
""")
