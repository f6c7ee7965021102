"What is written: text and figures, and the tour's report, one HTML file with everything inside."
import base64, io, os
from pathlib import Path

import jinja2

def write_text(path:Path, text:str):
    "Write a text file atomically."
    path = Path(path); path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(text, encoding="utf-8"); os.replace(part, path)

def short(value):
    "The same with every float of JSON-like data to six significant digits: more of them say nothing, and fill repositories."
    if isinstance(value, float): return float(f"{value:.6g}")
    if isinstance(value, dict): return {k: short(v) for k, v in value.items()}
    return [short(v) for v in value] if isinstance(value, (list, tuple)) else value

def figure(ax) -> str:
    "A matplotlib figure as an HTML image with the picture inside."
    import matplotlib.pyplot as plt
    out = io.BytesIO(); ax.figure.tight_layout(); ax.figure.savefig(out, format="png", dpi=90); plt.close(ax.figure)
    return f'<img alt="figure" src="data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}">'

def table(rows:list[dict]) -> str:
    "Rows of one shape as an HTML table."
    head = "".join(f"<th>{k}</th>" for k in rows[0])
    cells = jinja2.Template("{% for r in rows %}<tr>{% for v in r.values() %}<td>{{ v|e }}</td>{% endfor %}</tr>{% endfor %}").render(rows=rows)
    return f"<table><tr>{head}</tr>{cells}</table>"

def write_report(out:Path, sections:list, title:str):
    "Sections are dicts with title, text and a list of HTML parts."
    template = jinja2.Environment(autoescape=False).from_string((Path(__file__).parent / "report.html").read_text())
    write_text(out, template.render(title=title, sections=sections))
