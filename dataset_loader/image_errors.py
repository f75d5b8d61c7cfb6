"""Why a file is not taken as an X-ray; the message is the reason, without the file's name."""


class BrokenImageError(Exception):
    """A file without a usable image."""


class NoXRayError(BrokenImageError):
    """A whole file that is no X-ray: a mask, or a DICOM object without a picture. The reason is one of a few."""
