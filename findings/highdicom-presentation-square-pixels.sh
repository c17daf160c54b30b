#!/usr/bin/env bash
# highdicom 0.28.2: a presentation state of an image whose pixels are no squares says that they are.
# GrayscaleSoftcopyPresentationState writes PresentationPixelAspectRatio 1\1 into its displayed area,
# whatever Pixel Spacing (here 0.8 x 1.6 mm) or Pixel Aspect Ratio the referenced image has, and no
# Presentation Pixel Spacing. By PS3.3 C.10.4 these words overrule the image: a viewer that obeys
# shows it squeezed to half its width. The value is legal, so that no check of attributes objects.
# Seen: aspect ratio [1, 1] with and without non-square pixels. The script fails when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  highdicom==0.28.2 pydicom==3.0.2 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
from highdicom.pr import GrayscaleSoftcopyPresentationState
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid


def image(spacing: list[float]) -> Dataset:
    slice_ = Dataset()
    slice_.file_meta = FileMetaDataset()
    slice_.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    slice_.SOPClassUID, slice_.SOPInstanceUID = CTImageStorage, generate_uid()
    slice_.StudyInstanceUID, slice_.SeriesInstanceUID = generate_uid(), generate_uid()
    for keyword in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID"):
        setattr(slice_, keyword, "")
    slice_.StudyDate = slice_.StudyTime = slice_.AccessionNumber = ""
    slice_.ReferringPhysicianName, slice_.Modality = "", "CT"
    slice_.Rows, slice_.Columns, slice_.SamplesPerPixel = 64, 32, 1
    slice_.PhotometricInterpretation, slice_.PixelRepresentation = "MONOCHROME2", 0
    slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit = 16, 12, 11
    slice_.PixelSpacing = spacing
    slice_.RescaleIntercept, slice_.RescaleSlope = -1024, 1
    slice_.WindowCenter, slice_.WindowWidth = 40, 400
    slice_.PixelData = bytes(2 * 64 * 32)
    return slice_


for spacing in ([0.8, 0.8], [0.8, 1.6]):
    state = GrayscaleSoftcopyPresentationState(
        referenced_images=[image(spacing)],
        series_instance_uid=generate_uid(),
        series_number=1,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="M",
        manufacturer_model_name="N",
        software_versions="1",
        device_serial_number="1",
        content_label="STATE",
    )
    (area,) = state.DisplayedAreaSelectionSequence
    print(f"pixels of {spacing} mm: aspect ratio {area.get('PresentationPixelAspectRatio')},"
          f" spacing {area.get('PresentationPixelSpacing')}")
    assert list(area.PresentationPixelAspectRatio) == [1, 1]
    assert "PresentationPixelSpacing" not in area
PYTHON
