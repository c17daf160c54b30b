"""DICOM networking; what it calls is handed in."""
