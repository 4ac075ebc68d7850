"""The page of a DendroMap: a template with the data in it, and nothing from elsewhere."""

import base64
import hashlib
import html
import importlib.resources
import json
import string


def render_page(contents, title, num_clusters):
    """The HTML of a page.

    Texts are escaped; a content security policy lets the page run only its own script.

    Args:
        contents: what `DendroMap.to_json` holds, and `subgroups`.
        title: a text.
        num_clusters: how many clusters are seen at first.
    """
    page, style, script = (
        importlib.resources.files(__package__).joinpath(f"dendromap.{kind}").read_text("utf-8")
        for kind in ("html", "css", "js")
    )
    return string.Template(page).substitute(
        title=html.escape(title),
        num_clusters=int(num_clusters),
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
        data=_json_in_html(contents),
    )


def _hash(text):
    """As a content security policy names an inline element."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _json_in_html(value):
    """JSON in which nothing can end or begin an element."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("&", r"\u0026").replace("<", r"\u003c").replace(">", r"\u003e")
