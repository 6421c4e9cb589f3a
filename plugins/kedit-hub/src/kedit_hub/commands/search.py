"""``kedit search``: find patches that others published."""

from __future__ import annotations

import click

from kedit_core.cli.common import emit, json_option, say, show_table


@click.command(short_help="Find patches on the Hugging Face Hub or in an index.")
@click.argument("query", nargs=-1)
@click.option("--base", metavar="MODEL", help="Only for this model (Hub id or registered name).")
@click.option("--index", metavar="URL|FOLDER", help="Look here instead of the Hub.")
@click.option("--limit", type=click.IntRange(min=1), default=20, help="How many at most (20).")
@json_option
def search(query: tuple[str, ...], base: str | None, index: str | None, limit: int, json_to: str | None) -> None:
    """List patches whose titles, tags, methods or models hold all words of QUERY.

    What is listed is what authors say; `kedit pull` and `kedit patch verify` check.

    \b
    kedit search capital --base Qwen/Qwen3-8B
    kedit search --index ./shelf rome
    """
    from kedit_hub.searching import search as find

    found = find(" ".join(query), base=base, index=index, limit=limit)
    data = [
        {"source": each.source, "title": each.title, "base": each.base, "tags": each.tags, "downloads": each.downloads}
        for each in found
    ]

    def show() -> None:
        if not found:
            say("Nothing was found.")
            return
        rows = [(each.source, each.title, each.base, ", ".join(each.tags), str(each.downloads or "")) for each in found]
        show_table(("pull", "title", "for", "tags", "downloads"), rows)

    emit(json_to, lambda: data, show)
