"""What a photo, a model or a folder can do wrong; a caller's mistake is a ValueError."""


class DoodlError(Exception):
    """Base of every error that doodl raises on purpose."""


class PhotoError(DoodlError):
    """A photo cannot be processed; its row fails, the others go on."""


class UnreadablePhotoError(PhotoError):
    """The bytes are not a whole, well-formed photo."""


class UnsupportedPhotoError(PhotoError):
    """The photo is sound but of a kind that cannot be edited without loss."""


class PhotoTooLargeError(PhotoError):
    """More pixels than the bound allows; checked on the header, before decoding."""


class PhotoTooSmallError(PhotoError):
    """Too few pixels for the model to see anything."""


class ModelError(DoodlError):
    """A model is missing, is not what it says it is, or does not fit the others."""


class RequestError(DoodlError):
    """A picture cannot be made as asked: its prompt, size, class or subject does not fit."""


class LatentsError(DoodlError):
    """A latents file is not one of ours, is damaged, or belongs to another model."""


class InversionError(DoodlError):
    """The photo could not be inverted to finite noise, or not back again."""


class OptimisationError(DoodlError):
    """The optimisation left the finite numbers."""


class ChangeError(DoodlError):
    """A kept change is damaged, is another photo's, or lacks what is asked of it."""


class ProtectionError(PhotoError):
    """What is to be protected in a photo cannot be told: its mask or its protector is at fault."""
