"""The page around a report: its style sheet and its skeleton."""

from __future__ import annotations

import html

from wsizoo.viz.svg import STYLE as CHART_STYLE

_LIGHT = """--paper: #fdfdfc; --ink: #1d2127; --soft: #5c6570; --line: #e3e6ea;
  --track: #f0f2f4; --link: #0b5cad; --bar: #58a5d6; --s0: #0072b2; --s1: #d55e00; --s2: #00876a;
  --s3: #b0578c; --s4: #2f93c8; --s5: #b87a00; --s6: #6b6b6b; --shade: #1d212740;"""
_DARK = """--paper: #15181c; --ink: #e6e8eb; --soft: #a3acb6; --line: #343a42;
  --track: #262b31; --link: #7db8f0; --bar: #2a75a8; --s0: #5fb0e5; --s1: #f08a4b; --s2: #3cc6a0;
  --s3: #dc8fba; --s4: #94d3f5; --s5: #e8b13f; --s6: #b3b3b3; --shade: #e6e8eb55;"""

STYLE = f"""
:root {{ color-scheme: light dark; {_LIGHT} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_DARK} }} }}
* {{ box-sizing: border-box; }}
html {{ -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }}
body {{ margin: 0; background: var(--paper); color: var(--ink); overflow-wrap: break-word;
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial,
  sans-serif; }}
main {{ max-width: 62rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }}
h1 {{ font-size: 1.9rem; line-height: 1.2; margin: 0; letter-spacing: -0.01em; }}
h2 {{ font-size: 1.25rem; line-height: 1.3; margin: 2.75rem 0 0.75rem; padding-top: 1.25rem;
  border-top: 1px solid var(--line); }}
p {{ margin: 0.75rem 0; max-width: 44rem; }}
.subtitle {{ color: var(--soft); margin-top: 0.4rem; }}
nav ul {{ display: flex; flex-wrap: wrap; gap: 0.25rem 1.25rem; list-style: none; padding: 0;
  margin: 1.25rem 0 0; font-size: 0.9rem; }}
a {{ color: var(--link); }}
figure {{ margin: 1.25rem 0; }}
figure img {{ display: block; max-width: 100%; height: auto; border: 1px solid var(--line);
  border-radius: 4px; }}
figcaption {{ color: var(--soft); font-size: 0.9rem; line-height: 1.4; margin-top: 0.5rem;
  max-width: 44rem; }}
.table figcaption {{ margin: 0 0 0.5rem; }} .table .scroll {{ margin: 0; background:
  linear-gradient(to right, var(--paper) 1rem, transparent 2.5rem) left / 2.5rem 100%,
  linear-gradient(to left, var(--paper) 1rem, transparent 2.5rem) right / 2.5rem 100%,
  linear-gradient(to right, var(--shade), transparent) left / 1rem 100%,
  linear-gradient(to left, var(--shade), transparent) right / 1rem 100%;
  background-repeat: no-repeat; background-attachment: local, local, scroll, scroll; }}
.pair {{ display: grid; gap: 0 1.5rem; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); }}
.pair figure {{ min-width: 0; }}
.gallery {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr));
  gap: 1rem; margin: 1.25rem 0; padding: 0; list-style: none; }}
.gallery figure {{ margin: 0; }} .gallery img {{ width: 100%; }}
.scroll {{ overflow-x: auto; margin: 1.25rem 0; }}
table {{ border-collapse: collapse; font-size: 0.92rem; font-variant-numeric: tabular-nums; }}
th, td {{ padding: 0.4rem 1.1rem 0.4rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); font-weight: normal; }}
tbody th {{ min-width: 7.5rem; }}
thead th {{ color: var(--soft); font-weight: 600; white-space: nowrap; }}
th:last-child, td:last-child {{ padding-right: 0; }}
.number {{ text-align: right; }}
.facts {{ display: grid; grid-template-columns: minmax(7rem, max-content) 1fr;
  gap: 0.3rem 1.5rem; margin: 1.25rem 0; font-size: 0.95rem; }}
.facts dt {{ color: var(--soft); }} .facts dd {{ margin: 0; min-width: 0; }}
@media (max-width: 34rem) {{
  main {{ padding-top: 1.5rem; }} h1 {{ font-size: 1.5rem; }}
  .gallery {{ grid-template-columns: repeat(2, minmax(0, 1fr)); }}
  .facts {{ grid-template-columns: 1fr; gap: 0; }} .facts dd {{ margin-bottom: 0.6rem; }}
}}
@media print {{
  :root {{ color-scheme: light; {_LIGHT} --paper: #ffffff; }}
  main {{ max-width: none; padding: 0; }} nav {{ display: none; }}
  h2 {{ break-after: avoid; }} figure, tr, .facts {{ break-inside: avoid; }}
  figure.table {{ break-inside: auto; }}
  .scroll {{ overflow: visible; background: none; }} .pair {{ grid-template-columns: 1fr 1fr; }}
  figure img {{ width: auto !important; max-height: 17cm; }}
}}
{CHART_STYLE}"""

# Nothing may be fetched or run: the page shows what it holds.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(title: str, body: str) -> str:
    """A whole HTML document. title: plain text. body: HTML, already escaped."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def wide_table(table: str, caption: str = "") -> str:
    """A table that scrolls sideways where it must, a shade where more is; its caption stays.

    Args:
        table: a <table>, already escaped. caption: plain text, above it.
    """
    told = html.escape(caption)
    above = f"<figcaption>{told}</figcaption>" if told else ""
    return (
        f'<figure class="table">{above}<div class="scroll" tabindex="0" role="region" '
        f'aria-label="{told or "Table"}">{table}</div></figure>'
    )
