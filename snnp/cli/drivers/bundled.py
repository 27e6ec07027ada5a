"""`snnp publish zoo`: all models and datasets that are bundled, one after the other."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from snnp.cli.console import print_json, print_table, progress_bar, say
from snnp.cli.exchange import AcceptFindings, DryRun, Private, publish_app
from snnp.cli.options import Json, command

__all__: list[str] = []


@command("zoo", "snnp publish zoo org --dry-run", "snnp publish zoo org --private", of=publish_app)
def publish_zoo_command(
    owner: Annotated[str, typer.Argument(metavar="ORG", help="Organisation or user on the Hub.")],
    private: Private = False,
    dry_run: DryRun = False,
    accept_findings: AcceptFindings = False,
    as_json: Json = False,
) -> None:
    """Publish every bundled model, and every bundled dataset that may be handed on; the rest is listed with reasons."""
    from snnp.publish.zoo import ZooItem, publish_zoo

    found: list[ZooItem] = []
    with progress_bar("examining" if dry_run else "publishing") as update:

        def report(item: ZooItem, total: int) -> None:
            found.append(item)
            update(len(found), total, item.name)

        publish_zoo(owner, private=private, dry_run=dry_run, accept_findings=accept_findings, report=report)
    if as_json:
        print_json([{**asdict(each), "bytes": each.n_bytes} for each in found])
        return
    sent = [each for each in found if each.refused is None]
    rows = [(e.repository, e.kind, e.licence or "–", len(e.files), e.n_bytes, (e.commit or "–")[:12]) for e in sent]
    print_table(["repository", "kind", "licence", "files", "bytes", "commit"], rows)
    if refused := [[each.name, each.kind, str(each.refused)] for each in found if each.refused is not None]:
        print_table(["not published", "kind", "why"], refused, title="")
    total = f"{len(sent)} repositories, {sum(each.n_bytes for each in sent):,} bytes"
    say(f"{total}. Nothing was uploaded: leave --dry-run away for that." if dry_run else f"{total} published.")
