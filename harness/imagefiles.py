"""Image files as they are on disk: what their headers state, and whether their pixels are all there.

NIfTI is read here without ITK, which takes a truncated file for a whole one and a pixdim of 0 or NaN for 1
(decision 005). Layouts of data sets and `bench score` both read through this.
"""

from __future__ import annotations

import gzip
import locale
import math
import re
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from harness.errors import BenchError

NIFTI = (".nii.gz", ".nii")
META = (".mha", ".mhd")
NRRD = (".nrrd", ".nhdr")
PICTURES = (".png", ".tif", ".tiff", ".bmp")  # their resolution is that of a printer, not of a patient
JPEG = (".jpg", ".jpeg")  # for images only: its pixels are near those that were written, labels must be exact
ENDINGS = (*NIFTI, *META, *NRRD, *PICTURES)


def ending_of(path: Path) -> str:
    """The ending of a label image, in lower case; empty for any other file."""
    name = path.name.lower()
    return next((e for e in ENDINGS if name.endswith(e) and len(name) > len(e)), "")


@dataclass(frozen=True)
class Stated:
    """What a header states itself; ITK fills what is absent with 1, 0 and the identity.

    Attributes:
        spacing: As written, in the order of the file (x, y, z); empty where there is none.
        origin: Whether there is one.
        direction: Whether there is one.
    """

    spacing: tuple[float, ...] = ()
    origin: bool = False
    direction: bool = False


def stated(path: Path, axes: int) -> Stated:
    """What the header of a file of so many axes states itself."""
    ending = ending_of(path)
    if ending in NIFTI:
        header = nifti_header(path)
        placed = bool(header["qform_code"] > 0 or header["sform_code"] > 0)
        return Stated(tuple(float(s) for s in header["pixdim"][1 : axes + 1]), placed, placed)
    if ending in META:
        fields = _fields(path, "=", "elementdatafile")[0]
        spacing = fields.get("elementspacing", fields.get("elementsize", ""))
        return Stated(
            _floats(spacing), bool({"offset", "position", "origin"} & set(fields)),
            bool({"transformmatrix", "rotation", "orientation"} & set(fields)),
        )  # fmt: skip
    if ending in NRRD:
        fields = _fields(path, ":", "")[0]
        vectors = [_floats(v) for v in re.findall(r"\(([^)]*)\)", fields.get("space directions", ""))]
        lengths = tuple(math.hypot(*v) for v in vectors)
        return Stated(lengths or _floats(fields.get("spacings", "")), "space origin" in fields, bool(vectors))
    return Stated()


def _fields(path: Path, mark: str, last: str) -> tuple[dict[str, str], int]:
    """The fields of a text header up to the line whose key is `last`, keys in lower case, and where the next begins."""
    fields: dict[str, str] = {}
    with path.open("rb") as stream:
        for _ in range(1000):
            line = stream.readline(100_000)
            key, _, value = line.decode("latin-1").strip().partition(mark)
            name = key.strip().lower()
            fields[name] = value.strip()
            if not line or name == last:
                break
        return fields, stream.tell()


def _floats(text: str) -> tuple[float, ...]:
    return tuple(float(t) for t in re.split(r"[\s,]+", text.strip()) if t)


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.name.lower().endswith(".gz") else path.open("rb")  # type: ignore[return-value]


def nifti_header(path: Path) -> Any:
    """The header as it is on disk; nibabel mends a pixdim of 0 unless it is told not to."""
    import nibabel
    from nibabel.spatialimages import HeaderDataError
    from nibabel.wrapstruct import WrapStructError

    try:
        with _open(path) as stream, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a damaged header is refused below, and needs no remark beside it
            return nibabel.Nifti1Header.from_fileobj(stream, check=False)  # ITK reads no NIfTI-2
    except (HeaderDataError, WrapStructError) as error:
        raise ValueError(str(error)) from None


def stored_type(header: Any) -> np.dtype[Any]:
    """The type of a NIfTI's numbers.

    Raises:
        ValueError: Its code is none that there is.
    """
    code = int(header["datatype"])
    try:
        found: np.dtype[Any] = header.get_data_dtype()
    except KeyError:
        raise ValueError(f"the header states the type of numbers {code}, which does not exist") from None
    return found


def read_nifti(path: Path) -> NDArray[Any]:
    """The numbers of a NIfTI as stored (without scale factor), in the reverse order of its axes.

    Raises:
        EOFError: The file ends too early.
        ValueError: Its header is not one.
    """
    header = nifti_header(path)
    shape = tuple(int(n) for n in header.get_data_shape())
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    values = np.empty(math.prod(shape), stored_type(header))
    room = values.view(np.uint8).data
    with _open(path) as stream:
        stream.seek(max(int(header.get_data_offset()), int(header["sizeof_hdr"])))
        got = 0
        while got < len(room) and (n := stream.readinto(room[got:])):  # type: ignore[attr-defined]
            got += n
        if got < len(room):
            raise EOFError(f"{got} of {len(room)} bytes of pixels are there")
        while stream.read(1 << 20):  # gzip compares its checksum at the end
            pass
    return values.reshape(shape[::-1])


def check_meta(path: Path) -> None:
    """Refuse compressed pixels that are damaged: ITK says so on the console, and goes on with half an image."""
    fields, start = _fields(path, "=", "elementdatafile")
    if fields.get("compresseddata", "").lower() != "true":
        return
    name = fields.get("elementdatafile", "")
    local = name.upper() == "LOCAL"
    inflate = zlib.decompressobj()
    with (path if local else path.parent / name).open("rb") as stream:
        stream.seek(start if local else 0)
        while block := stream.read(1 << 16):
            while block and not inflate.eof:
                inflate.decompress(block, 1 << 20)
                block = inflate.unconsumed_tail
    if not inflate.eof:
        raise EOFError("the compressed pixels end too early")


def check_bmp(path: Path) -> None:
    """Refuse a bitmap that is shorter than it states: ITK fills the rest.

    Raises:
        EOFError: It is.
    """
    with path.open("rb") as stream:
        stated_size = int.from_bytes(stream.read(6)[2:], "little")
    if path.stat().st_size < stated_size:
        raise EOFError(f"{path.stat().st_size} of {stated_size} bytes are there")


def check_jpeg(path: Path) -> None:
    """Refuse a JPEG that ends too early: ITK makes up the rest.

    Raises:
        OSError: It does, or is none.
    """
    from PIL import Image

    with Image.open(path) as picture:
        picture.load()


def has_palette(path: Path) -> bool:
    """Whether a PNG stores indices into a palette, as label pictures often do."""
    if ending_of(path) != ".png":
        return False
    with path.open("rb") as stream:
        head = stream.read(26)
    return head[12:16] == b"IHDR" and head[25:26] == b"\x03"


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """What a library raises over a damaged file becomes one sentence."""
    try:
        yield
    except FileNotFoundError:
        raise BenchError(f"{path}: no such file.") from None
    except PermissionError:
        raise BenchError(
            f"{path}: permission denied; give this user the right to read the file and to enter its folders."
        ) from None
    except MemoryError:
        raise BenchError(
            f"{path}: its header states a size that does not fit into memory; it is damaged, or too large for this "
            "machine."
        ) from None
    except (OSError, EOFError, ValueError, RuntimeError, zlib.error) as error:
        lines = [t.strip() for t in str(error).splitlines() if t.strip()]
        reason = (lines[-1] if isinstance(error, RuntimeError) else lines[0]) if lines else type(error).__name__
        raise BenchError(
            f"{path}: cannot be read as an image, it is damaged or of another format ({reason.rstrip('.')})."
        ) from None


@contextmanager
def quiet() -> Iterator[None]:
    """ITK's own warnings would stand between the lines of the progress."""
    import SimpleITK as sitk

    before = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(before)


@contextmanager
def locale_kept() -> Iterator[None]:
    """The locale of the process: ITK's reader of DICOM sets it to "C", and texts would then be read as ASCII."""
    before = locale.setlocale(locale.LC_ALL)
    try:
        yield
    finally:
        locale.setlocale(locale.LC_ALL, before)


def by(shape: Sequence[int]) -> str:
    """A shape for sentences: 4×512×512."""
    return "×".join(str(int(n)) for n in shape)
