"""Selects the pictures among the files of a place by their content, and lists the others by kind. Decodes no picture."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

READABLE = (".jpeg", ".jpg", ".png", ".webp")
# Selected too, and refused when decoded: passing over two of ten photographs would be worse than an error.
UNREADABLE = (".avif", ".bmp", ".gif", ".heic", ".heif", ".jp2", ".jxl", ".ppm", ".tif", ".tiff")
TEXT = (".caption", ".csv", ".json", ".jsonl", ".md", ".tags", ".toml", ".tsv", ".txt", ".xml", ".yaml", ".yml")
"""Endings of files that are never opened; for other files without a picture's ending the first bytes decide."""
SYSTEM = {"__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "thumbs.db", "desktop.ini"}
"""Files and folders that macOS, Windows and network disks create, lower case."""
BEGINNING_BYTES = 32
PICTURE = re.compile(
    rb"\x89PNG\r\n|\xff\xd8\xff|RIFF....WEBP|GIF8[79]a|BM....\0\0\0\0|II\*\0|MM\0\*|P[1-6]\s"
    rb"|\xff\x0a|\0\0\0\x0cJXL |\0\0\0\x0cjP  |....ftyp(?:avif|avis|heic|heix|heim|mif1|msf1)",
    re.DOTALL,
)
TABLE, ZIP = b"PAR1", b"PK\3\4"

RESERVED = re.compile(r".*-(masklabel|condlabel)", re.DOTALL)
"""OneTrainer's masks and conditioning images: never trained on, even without the picture beside them."""
_WORDS = "masks?|masklabel|alpha|matte|trimap|segmentation|seg|depth|canny|lineart|softedge|scribble|openpose|cond|conditioning|control"
COMPANION = re.compile(rf"(.+?)[-_. ](?:{_WORDS})", re.DOTALL | re.IGNORECASE)
"""`a_mask.png`, `a.mask.png` (cloneofsimo/lora), `a-depth.png` (EveryDream2) beside `a.jpg`."""
COMPANION_ENDING = ".mask"
"""`a.mask` beside `a.png`, of any format: forks of sd-scripts."""
SMALL = re.compile(r"(?:thumb|thumbnail|tn)[-_](.+)|(.+?)[-_.](?:thumb|thumbs|thumbnail|\d+x\d+)", re.DOTALL | re.IGNORECASE)
COMPANION_FOLDER = re.compile(
    rf"(?:(.+)[-_. ])?(?:{_WORDS}|masked_loss)|(?:{_WORDS})[-_. ]?(?:images?|imgs?|pictures?|data)", re.DOTALL | re.IGNORECASE
)
"""Folders with masks by the pictures' names, at any depth: sd-scripts' `conditioning_data_dir` (kohya_ss has it beside `img`, as
`masked_loss` or `mask-img`), ai-toolkit's and diffusion-pipe's `mask_path`, SimpleTuner's conditioning data sets."""
REPEATS_FOLDER = re.compile(r"\d+_.+", re.DOTALL)
"""kohya_ss's `10_name class`, with the number of repeats; the masks' folder may have no such level."""
SMALL_FOLDER = re.compile(r"(?:(.+)[-_. ])?(?:thumbs?|thumbnails?)", re.DOTALL | re.IGNORECASE)
PICTURE_FOLDERS = (
    "image",
    "images",
    "img",
    "imgs",
    "input",
    "inputs",
    "picture",
    "pictures",
    "photos",
    "src",
    "target",
    "targets",
    "train",
)

HIDDEN, SYSTEM_FILES, TEXTS, ARCHIVES, TABLES = "hidden", "of the system", "text", "zip archives", "Parquet files"
MASKS, THUMBNAILS, SEEN, OTHER = "masks or conditioning images", "thumbnails", "links to folders already read", "no pictures"


@dataclass(frozen=True)
class Selection:
    """The files of a folder or an archive that are read, and those that aren't."""

    names: tuple[str, ...]
    """Paths within the place, in natural order."""
    kind: Literal["pictures", "tables"]
    """Tables are the shards of one Parquet data set."""
    passed_over: Mapping[str, tuple[str, ...]]
    """Names of the files that aren't read, by kind."""

    def summary(self) -> str:
        """The files that aren't read: "3 text (a.txt, b.txt, c.txt), 1 masks or ... (a_mask.png)"; empty where there are none."""
        return ", ".join(f"{len(names)} {kind} ({_few(names)})" for kind, names in self.passed_over.items())


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def select(names: Iterable[str], beginnings: Callable[[Sequence[str]], Mapping[str, bytes]], seen: Sequence[str] = ()) -> Selection:
    """The pictures among the files of a place, or its Parquet files where there are no pictures.

    `beginnings`: the first `BEGINNING_BYTES` of files, asked once for those whose names don't say what they are. `seen`: links passed over.
    """
    kinds = {name: _kind_by_name(name) for name in names}
    unsaid = [name for name, kind in kinds.items() if not kind]
    for name, beginning in beginnings(unsaid).items() if unsaid else ():
        kinds[name] = _kind_by_content(beginning)
    found = [name for name, kind in kinds.items() if kind == "picture"]
    paths = {name: PurePosixPath(name) for name in found}
    own = {(path.parent.parts, path.stem) for path in paths.values() if path.suffix.lower() != COMPANION_ENDING}
    own |= {(_shown(folders), stem) for folders, stem in own}
    for name, path in paths.items():
        kinds[name] = _companion(path, own) or "picture"
    kinds |= dict.fromkeys(seen, SEEN)
    chosen = "picture" if "picture" in kinds.values() else TABLES
    passed: dict[str, tuple[str, ...]] = {}
    for kind in (MASKS, THUMBNAILS, TABLES, ARCHIVES, OTHER, TEXTS, SEEN, SYSTEM_FILES, HIDDEN):
        if kind != chosen and (those := [name for name, other in kinds.items() if (other or OTHER) == kind]):
            passed[kind] = tuple(sorted(those, key=natural_order))
    read = sorted((name for name, kind in kinds.items() if kind == chosen), key=natural_order)
    return Selection(tuple(read), "pictures" if chosen == "picture" else "tables", passed)


def _kind_by_name(name: str) -> str:
    """The kind of a file by its name; empty where the content must decide."""
    path = PurePosixPath(name)
    suffix = path.suffix.lower()
    if any(part.lower() in SYSTEM for part in path.parts):
        return SYSTEM_FILES
    if any(part.startswith(".") for part in path.parts):
        return HIDDEN
    if suffix in READABLE + UNREADABLE:
        return "picture"
    if suffix == ".parquet":
        return TABLES
    return TEXTS if suffix in TEXT else ""


def _kind_by_content(beginning: bytes) -> str:
    if PICTURE.match(beginning):
        return "picture"
    return {TABLE: TABLES, ZIP: ARCHIVES}.get(beginning[:4], OTHER)


def _companion(path: PurePosixPath, pictures: Set[tuple[tuple[str, ...], str]]) -> str:
    """The kind (mask or thumbnail) of a picture that belongs to another one of the place; empty for a picture in its own right."""
    folders, stem = path.parent.parts, path.stem
    if RESERVED.fullmatch(stem):
        return MASKS
    if path.suffix.lower() == COMPANION_ENDING and (folders, stem) in pictures:
        return MASKS
    for pattern, kind in ((COMPANION, MASKS), (SMALL, THUMBNAILS)):
        if match := pattern.fullmatch(stem):
            own = next(group for group in match.groups() if group)
            if (folders, own) in pictures or (folders, f"{own}.src") in pictures:
                return kind
    for depth, name in enumerate(folders):
        for pattern, kind in ((COMPANION_FOLDER, MASKS), (SMALL_FOLDER, THUMBNAILS)):
            if match := pattern.fullmatch(name):
                above, below = folders[:depth], folders[depth + 1 :]
                beside = [above, *((*above, other) for other in (match[1], *PICTURE_FOLDERS) if other)]
                if any((_shown((*other, *below)), stem) in pictures for other in beside):
                    return kind
    return ""


def _shown(folders: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in folders if not REPEATS_FOLDER.fullmatch(name))


def local_files(root: str) -> tuple[list[str], list[str]]:
    """Paths below a folder on disk, linked folders followed, and the links to folders that were read already (so that loops end).

    Hidden folders are not entered; each is listed as one path. Raises OSError.
    """
    names: list[str] = []
    seen, again, pending = {_identity(root)}, [], [("", root, False)]
    while pending:
        pending.sort(key=lambda item: (item[2], item[0]), reverse=True)  # real folders go before links
        prefix, folder, is_link = pending.pop()
        if is_link and _identity(folder) in seen:
            again.append(prefix.rstrip("/"))
            continue
        seen.add(_identity(folder))
        with os.scandir(folder) as entries:
            for entry in entries:
                path = prefix + entry.name
                if not _is_folder(entry) or _kind_by_name(entry.name) in (HIDDEN, SYSTEM_FILES):
                    names.append(path)
                else:
                    pending.append((path + "/", entry.path, entry.is_symlink()))
    return names, again


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _identity(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def local_selection(root: str) -> Selection:
    """The selection of a folder on disk. Raises OSError."""
    names, again = local_files(root)
    return select(names, lambda unsaid: {name: local_beginning(os.path.join(root, name)) for name in unsaid}, again)


def local_beginning(path: str) -> bytes:
    """A file's first bytes; empty where it isn't a regular file (a pipe would block) or can't be read."""
    try:
        if not Path(path).is_file():
            return b""
        with open(path, "rb") as file:
            return file.read(BEGINNING_BYTES)
    except OSError:
        return b""


def container(name: str, beginning: bytes) -> Literal["zip", "parquet", ""]:
    """The kind of a single file: by its ending, so that a damaged archive is reported as one, else by its content."""
    suffix = PurePosixPath(name).suffix.lower()
    if suffix == ".zip" or (suffix != ".parquet" and beginning.startswith(ZIP)):
        return "zip"
    return "parquet" if suffix == ".parquet" or beginning.startswith(TABLE) else ""


def natural_order(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """A sorting key that puts `img2.png` before `img10.png`, whatever the case of the letters."""
    parts = re.findall(r"[0-9]+|[^0-9]+", name.casefold())
    return [(0, int(part), "") if part[0] in "0123456789" else (1, 0, part) for part in parts], name
