"""`snnp pull`, `snnp mirror` and `snnp publish`: models and datasets from and to the Hub."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from snnp.cli.console import print_json, print_pairs, print_result, print_table, progress_bar, say, warn
from snnp.cli.options import Json, command, group
from snnp.errors import InputError

if TYPE_CHECKING:
    from snnp.doctor import Report
    from snnp.hub import Publication

__all__ = ["print_remote", "publish_app"]

_Names = Annotated[list[str], typer.Argument(metavar="NAME...", help="Repositories: org/name or org/name@REVISION.")]
_IsDataset = Annotated[bool, typer.Option("--dataset", help="The names are of datasets, not of models.")]
_Repository = Annotated[str, typer.Argument(metavar="ORG/NAME", help="Repository on the Hub; made if need be.")]
_Private = Annotated[bool, typer.Option("--private", help="A new repository is visible to its owner only.")]
_AcceptFindings = Annotated[
    bool, typer.Option("--accept-findings", help="Publish in spite of errors that the doctor finds in data.")
]
_DryRun = Annotated[bool, typer.Option("--dry-run", help="Check and show everything, upload nothing.")]

publish_app = group("Publish a model or a dataset on the Hub.", "snnp publish model runs/mine org/name --dry-run")


@command("pull", "snnp pull org/name", "snnp pull org/name@v1.0", "snnp pull --dataset org/name --json")
def pull_command(
    names: _Names,
    dataset: _IsDataset = False,
    force: bool = typer.Option(False, "--force", help="Download again what is in the cache."),
    as_json: Json = False,
) -> None:
    """Fetch models or datasets into the cache and check every file; prints the commit that a name stands for."""
    from snnp.hub import resolve

    places = [resolve(name, "dataset" if dataset else "model", force=force) for name in names]
    _report([(place.record(), place.folder) for place in places], as_json)


@command(
    "mirror",
    "snnp mirror /shared/mirror org/name other/name@v1.0",
    "snnp mirror /shared/mirror --dataset org/name",
    after=("On the machine without internet: export SNNP_MIRROR=/shared/mirror",),
)
def mirror_command(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The mirror; made if need be.")],
    names: _Names,
    dataset: _IsDataset = False,
    as_json: Json = False,
) -> None:
    """Copy models or datasets into a plain folder, for machines without internet."""
    from snnp.hub import add_to_mirror

    added = [add_to_mirror(folder, name, "dataset" if dataset else "model") for name in names]
    _report([({"name": n, "commit": commit}, at) for n, (at, commit) in zip(names, added, strict=True)], as_json)
    if not as_json:
        say(f"On the other machine: export SNNP_MIRROR={folder}, wherever the folder is there.")


def _report(found: Sequence[tuple[Mapping[str, Any], Path]], as_json: bool) -> None:
    sizes = [sum(each.stat().st_size for each in folder.rglob("*") if each.is_file()) for _, folder in found]
    values = [{**each, "folder": str(at), "bytes": size} for (each, at), size in zip(found, sizes, strict=True)]
    if as_json:
        print_json(values)
    else:
        for each in values:
            print_result(each)


@command(
    "model",
    "snnp publish model runs/mine org/name --dry-run --folder look-at-this",
    "snnp publish model runs/mine org/name --set licence=cc-by-4.0 --set level_of_theory='PBE, 520 eV'",
    "snnp publish model snnp-cu org/copper --private",
    of=publish_app,
)
def publish_model_command(
    source: Annotated[str, typer.Argument(metavar="MODEL", help="Run folder, model folder or bundled name.")],
    repository: _Repository,
    private: _Private = False,
    dry_run: _DryRun = False,
    statements: list[str] | None = typer.Option(
        None, "--set", metavar="KEY=VALUE", help="State what the model does not, such as licence=mit."
    ),
    folder: Path | None = typer.Option(
        None, metavar="FOLDER", help="Keep the files as they are uploaded in this new folder."
    ),
    as_json: Json = False,
) -> None:
    """Publish a model: examined by the doctor, with a card and checksums, in one commit."""
    from snnp.publish import publish_model

    about = _statements(statements or [])

    def show(plan: Publication, report: Report) -> None:
        for finding in report.findings:
            warn(f"the doctor: {finding.check}: {finding.message}")
        if not as_json:
            _print_files(repository, plan.files)

    done = publish_model(source, repository, private=private, dry_run=dry_run, about=about, folder=folder, show=show)
    kept = {} if folder is None else {"folder": str(folder)}
    _print_published(repository, done, as_json, shown=True, **kept)
    if done.commit is not None and not as_json:
        say(f"Anybody who may read it can now use 'snnp pull {repository}@{done.commit[:40]}'.")


@command(
    "dataset",
    "snnp publish dataset built/mlearn org/mlearn --dry-run",
    "snnp publish dataset mine org/mine --set title=Copper --set summary='...' --set origin=own --set licence=mit",
    of=publish_app,
)
def publish_dataset_command(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="With parquet files, of a recipe or convert.")],
    repository: _Repository,
    private: _Private = False,
    dry_run: _DryRun = False,
    statements: list[str] | None = typer.Option(
        None, "--set", metavar="KEY=VALUE", help="State title, summary, origin, licence, citation, ..."
    ),
    accept_findings: _AcceptFindings = False,
    as_json: Json = False,
) -> None:
    """Publish a dataset: licence and units checked, examined by the doctor, with card and checksums, in one commit."""
    from snnp.publish import publish_dataset

    about = _statements(statements) if statements else None
    done = publish_dataset(
        folder, repository, private=private, dry_run=dry_run, about=about, accept_findings=accept_findings
    )
    _print_published(repository, done, as_json)


@command("zoo", "snnp publish zoo org --dry-run", "snnp publish zoo org --private", of=publish_app)
def publish_zoo_command(
    owner: Annotated[str, typer.Argument(metavar="ORG", help="Organisation or user on the Hub.")],
    private: _Private = False,
    dry_run: _DryRun = False,
    accept_findings: _AcceptFindings = False,
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


def _print_files(repository: str, files: Mapping[str, int]) -> None:
    print_table(["file", "bytes"], list(files.items()), title=repository)


def _print_published(repository: str, done: Publication, as_json: bool, *, shown: bool = False, **more: str) -> None:
    """What was uploaded, or would be; shown: the files are on the screen already."""
    if as_json:
        values = {"repository": repository, "files": done.files, "commit": done.commit, "address": done.address}
        print_json({**values, **more})
        return
    if not shown:
        _print_files(repository, done.files)
    if done.commit is None:
        say("Nothing was uploaded: leave --dry-run away for that.")
    else:
        print_pairs({"commit": done.commit, "address": str(done.address)})


def _statements(assignments: list[str]) -> dict[str, Any]:
    """`KEY=VALUE`, values read as YAML."""
    import yaml

    values = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key.isidentifier():
            raise InputError(f"--set {assignment!r} is not of the form KEY=VALUE, as in --set licence=mit.")
        try:
            values[key] = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, RecursionError):
            raise InputError(f"--set {assignment!r}: the value is no YAML; put it into quotes.") from None
        try:
            json.dumps(values[key], allow_nan=False)
        except (TypeError, ValueError, RecursionError):  # dates, sets, endless numbers, lists that hold themselves
            reason = f"--set {assignment!r}: the value is no text, number, list or mapping; quote it."
            raise InputError(reason) from None
    return values


def print_remote(owner: str | None, as_json: bool) -> None:
    """Print the models and datasets on the Hub that carry snnp's tag."""
    from snnp.hub import list_repositories

    found = [*list_repositories("model", owner=owner), *list_repositories("dataset", owner=owner)]
    rows = [
        [each.name, each.kind, "yes" if each.private else "", str(each.downloads), each.modified, each.commit]
        for each in found
    ]
    if as_json:
        print_json([asdict(each) for each in found])
    elif rows:
        print_table(["name", "kind", "private", "downloads", "changed", "commit"], rows)
    else:
        say("There is nothing with the tag 'snnp'" + (f" of {owner}." if owner else "."))
