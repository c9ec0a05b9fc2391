"""A slide of several files is one slide of one identity. DICOM files are written by pydicom and read by OpenSlide."""

from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGBaseline8Bit, VLWholeSlideMicroscopyImageStorage, generate_uid

from appssl.errors import DataError
from appssl.ops.slides.files import files_of, slide_sha256, slides_among, verify
from appssl.ops.slides.reader import SlideReader
from appssl.ops.slides.slide import BadSlide
from tests.ops.slides.test_slide import picture

SIDE = 256


def write_dicom(folder, image, *, mpp=0.5, levels=2, name="level"):
    """A file for each level, as scanners write them; returns the first."""
    folder.mkdir(parents=True, exist_ok=True)
    series, study = generate_uid(), generate_uid()
    for n in range(levels):
        level = image[:: 2**n, :: 2**n]
        height, width = level.shape[:2]
        padded = np.pad(level, ((0, -height % SIDE), (0, -width % SIDE), (0, 0)), mode="edge")
        frames = [
            imagecodecs.jpeg8_encode(np.ascontiguousarray(padded[y : y + SIDE, x : x + SIDE]), level=95)
            for y in range(0, height, SIDE)
            for x in range(0, width, SIDE)
        ]
        measures, shared, meta = Dataset(), Dataset(), FileMetaDataset()
        measures.PixelSpacing = [mpp * 2**n / 1000] * 2
        shared.PixelMeasuresSequence = [measures]
        meta.MediaStorageSOPClassUID = VLWholeSlideMicroscopyImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        meta.TransferSyntaxUID = JPEGBaseline8Bit
        file = Dataset()
        file.file_meta = meta
        values = {
            "SOPClassUID": VLWholeSlideMicroscopyImageStorage, "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
            "SeriesInstanceUID": series, "StudyInstanceUID": study, "Modality": "SM",
            "ImageType": ["ORIGINAL", "PRIMARY", "VOLUME", "RESAMPLED" if n else "NONE"],
            "DimensionOrganizationType": "TILED_FULL", "TotalPixelMatrixColumns": width,
            "TotalPixelMatrixRows": height, "Rows": SIDE, "Columns": SIDE, "NumberOfFrames": len(frames),
            "SamplesPerPixel": 3, "PhotometricInterpretation": "YBR_FULL_422", "PlanarConfiguration": 0,
            "BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "PixelRepresentation": 0,
            "SharedFunctionalGroupsSequence": [shared], "OpticalPathSequence": [Dataset()],
            "TotalPixelMatrixFocalPlanes": 1, "NumberOfOpticalPaths": 1,
        }  # fmt: skip
        for key, value in values.items():
            setattr(file, key, value)
        file.PixelData = encapsulate(frames)
        file["PixelData"].is_undefined_length = True
        file.save_as(folder / f"{name}{n}.dcm", enforce_file_format=True)
    return folder / f"{name}0.dcm"


def test_a_dicom_slide_is_read_at_any_spacing(tmp_path):
    image = picture(600)
    reader = SlideReader(write_dicom(tmp_path / "a", image))
    assert reader.geometry.mpp == (0.5, 0.5)
    assert reader.geometry.levels == ((600, 600), (300, 300))
    tile = reader.tile((300, 200), spacing_um=0.5, tile_px=128)
    assert np.abs(tile.astype(int) - image[200:328, 300:428]).max() <= 6  # JPEG
    coarse = reader.tile((100, 100), spacing_um=1.0, tile_px=128)
    assert np.abs(coarse.astype(int) - image[100:356:2, 100:356:2]).max() <= 6
    assert reader.use_stored(0.5) != ""  # through OpenSlide, and says so


def test_the_files_of_a_dicom_series_are_one_slide(tmp_path):
    first = write_dicom(tmp_path / "a", picture(300))
    other = write_dicom(tmp_path / "a", picture(300, seed=1), name="other")  # in the same folder
    (tmp_path / "a" / "notes.txt").write_text("x")
    assert [file.name for file in files_of(first)] == ["level0.dcm", "level1.dcm"]
    names = [file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*") if file.is_file()]
    assert slides_among(tmp_path, names) == (["a/level0.dcm", "a/other0.dcm"], ["a/notes.txt"])
    assert slide_sha256(first) == slide_sha256(first.with_name("level1.dcm")) != slide_sha256(other)


def test_a_change_in_any_file_of_a_slide_is_seen(tmp_path):
    first = write_dicom(tmp_path, picture(300))
    digest = slide_sha256(first)
    verify(first, digest)
    second = first.with_name("level1.dcm")
    content = bytearray(second.read_bytes())
    content[-100] ^= 1
    second.write_bytes(content)
    with pytest.raises(DataError, match="has changed since it was prepared"):
        verify(first, digest)


def test_folders_and_neighbours_that_hold_pixels_belong_to_their_slide(tmp_path):
    for name in ("s.mrxs", "s/Data0000.dat", "s/Slidedat.ini", "v.vms", "v(1,0).jpg", "v.opt", "w.jpg"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(name)
    names = [file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*") if file.is_file()]
    assert slides_among(tmp_path, names) == (["s.mrxs", "v.vms"], ["w.jpg"])
    assert [file.name for file in files_of(tmp_path / "s.mrxs")] == ["s.mrxs", "Data0000.dat", "Slidedat.ini"]


def test_a_dicom_file_that_is_none_is_a_bad_slide_of_one_file(tmp_path):
    path = tmp_path / "x.dcm"
    path.write_bytes(b"no DICOM")
    assert files_of(path) == [path]
    with pytest.raises(BadSlide, match="not_a_slide"):
        SlideReader(Path(path))
