#!/usr/bin/env bash
# dcm2niix 1.0.20260724: overlay planes (60xx,3000) of a CT series become a second volume, NAME_ROI1,
# of 8 bits, 0 and 1, beside NAME. A pipeline that takes every NIfTI file of the output folder for a
# series gets one more, of nothing but the words that were written into the overlay; with the
# overlay on some slices only, the rest of that volume is 0. Its help names no option for it.
# The script fails when there is one volume, or when the second one is something else.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  dcm2niix==1.0.20260724 pydicom==3.0.2 numpy==2.4.0 nibabel==5.4.2
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

folder = Path(sys.argv[1])
(folder / "in").mkdir()
(folder / "out").mkdir()
study, series, frame = (generate_uid() for _ in range(3))
for index in range(6):
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = CTImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
    data.PatientID, data.PatientName, data.Modality = "1", "Made^Data", "CT"
    data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = study, series, frame
    data.SeriesNumber, data.InstanceNumber = 1, index + 1
    data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    data.ImagePositionPatient = [0, 0, 5 * index]
    data.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    data.PixelSpacing, data.SliceThickness = [1, 1], 5
    data.Rows = data.Columns = 64
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.RescaleSlope, data.RescaleIntercept = 1, 0
    data.PixelData = np.full((64, 64), 40 + index, np.int16).tobytes()
    if index % 2:  # on every other slice
        words = np.zeros((64, 64), np.uint8)
        words[2:6, 2:20] = 1
        for element, vr, value in (
            (0x0010, "US", 64), (0x0011, "US", 64), (0x0040, "CS", "G"), (0x0050, "SS", [1, 1]),
            (0x0100, "US", 1), (0x0102, "US", 0),
            (0x3000, "OW", np.packbits(words, bitorder="little").tobytes()),
        ):
            data.add_new((0x6000, element), vr, value)
    data.save_as(folder / "in" / f"{index}.dcm", enforce_file_format=True)
tool = Path(sys.executable).with_name("dcm2niix")
subprocess.run([tool, "-f", "made", "-o", folder / "out", folder / "in"], check=True,
               stdout=subprocess.DEVNULL)
volumes = {path.name: nibabel.load(path) for path in sorted((folder / "out").glob("*.nii*"))}
for name, volume in volumes.items():
    values = np.asarray(volume.dataobj)
    print(name, volume.shape, volume.get_data_dtype(), np.unique(values).tolist()[:8],
          [int(values[..., k].sum()) for k in range(values.shape[-1])] if "ROI" in name else "")
rois = [name for name in volumes if "ROI" in name]
if len(volumes) != 2 or len(rois) != 1:
    raise SystemExit(f"changed: {sorted(volumes)}")
if set(np.unique(np.asarray(volumes[rois[0]].dataobj)).tolist()) != {0, 1}:
    raise SystemExit("changed: the second volume is no plane of bits")
PYTHON
