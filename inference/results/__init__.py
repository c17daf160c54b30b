"""The DICOM objects of a result."""
