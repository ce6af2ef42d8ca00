"""Downloads with hashes: a file appears under its name only when it is whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from targetprop.data.catalogue import default_folder, home
from targetprop.data.formats import DataError
from targetprop.data.sources import source


def fetch(name: str, folder: Path | None = None, progress: Any = False) -> list[Path]:
    """Download the files of a data set that are not there yet.

    Args:
        name: one of ``SOURCES``.
        folder: where to put ``NAME/``; default the cache folder.
        progress: what pooch takes as ``progressbar``.

    Raises:
        DataError: it cannot be fetched, the download failed or is altered; nothing is left behind.
    """
    import pooch

    about = source(name)
    files = about.layouts[0] if about.layouts else ()
    if name == "digits":
        return []
    if not files or any(file.url is None for file in files):
        raise DataError(f"data set '{name}' cannot be fetched: {about.remedy or about.about}.")
    target = (default_folder() if folder is None else home(folder)) / name
    paths = []
    for file in files:
        assert file.url is not None
        try:
            path = pooch.retrieve(file.url, file.digest, file.name, target, progressbar=progress)
        except (
            Exception
        ) as error:  # requests, urllib3, pooch and the file system each have their own
            raise DataError(f"could not fetch {file.url}: {str(error).splitlines()[0]}") from error
        paths.append(Path(path))
    return paths
