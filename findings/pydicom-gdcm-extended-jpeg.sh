#!/usr/bin/env bash
# pydicom 3.0.2 with python-gdcm 3.2.6: JPEG Extended (Process 2 and 4) of 12 bits is refused as
# "GDCM does not support ... 12-bit precision", although GDCM itself reads the same file exactly.
# Seen: pydicom raises RuntimeError; gdcm.ImageReader gives the pixels with no difference.
# So GDCM behind pydicom is no full replacement for a decoder of 12-bit CT. The script fails when
# either of the two changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  pydicom==3.0.2 python-gdcm==3.2.6 imagecodecs==2026.3.6 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import gdcm
import imagecodecs
import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder
from pydicom.uid import CTImageStorage, JPEGExtended12Bit, generate_uid

y, x = np.mgrid[0:64, 0:64]
pixels = ((x + y) * 30).astype(np.uint16)
slice_ = Dataset()
slice_.file_meta = FileMetaDataset()
slice_.file_meta.TransferSyntaxUID = JPEGExtended12Bit
slice_.SOPClassUID, slice_.SOPInstanceUID = CTImageStorage, generate_uid()
slice_.Rows, slice_.Columns, slice_.SamplesPerPixel = 64, 64, 1
slice_.PhotometricInterpretation, slice_.PixelRepresentation = "MONOCHROME2", 0
slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit = 16, 12, 11
stream = imagecodecs.jpeg8_encode(pixels, bitspersample=12, level=100)
slice_.PixelData = encapsulate([stream])
slice_["PixelData"].VR = "OB"
slice_.save_as("slice.dcm", enforce_file_format=True)

reader = gdcm.ImageReader()
reader.SetFileName("slice.dcm")
assert reader.Read()
buffer = reader.GetImage().GetBuffer().encode("utf-8", errors="surrogateescape")
read = np.frombuffer(buffer, "<u2").reshape(64, 64)
off = int(np.abs(read.astype(int) - pixels).max())
print(f"GDCM reads the file; largest difference to the pixels: {off}")
assert off <= 1
try:
    get_decoder(JPEGExtended12Bit).as_array(dcmread("slice.dcm"), decoding_plugin="gdcm")
except RuntimeError as error:
    print(f"pydicom with GDCM: {error}")
    assert "12-bit precision" in str(error)
else:
    raise SystemExit("changed: pydicom decodes extended JPEG of 12 bits with GDCM")
PYTHON
