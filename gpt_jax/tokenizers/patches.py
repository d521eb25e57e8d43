"""Images to square patches and back, for numpy and jax arrays.

Letters: N images, Y X A rows, columns and channels of pixels, R S rows and columns of patches,
C = patch * patch * A values of a patch.
"""


def to_patches(images_NYXA, patch: int):
  """[N, Y, X, A] -> [N, R, S, C]; the pixels of a patch are in reading order."""
  N, Y, X, A = images_NYXA.shape
  pieces = images_NYXA.reshape(N, Y // patch, patch, X // patch, patch, A)
  return pieces.transpose(0, 1, 3, 2, 4, 5).reshape(N, Y // patch, X // patch, patch * patch * A)


def from_patches(patches_NRSC, patch: int):
  """Invert `to_patches`: [N, R, S, C] -> [N, Y, X, A]."""
  N, R, S, C = patches_NRSC.shape
  A = C // patch**2
  pieces = patches_NRSC.reshape(N, R, S, patch, patch, A).transpose(0, 1, 3, 2, 4, 5)
  return pieces.reshape(N, R * patch, S * patch, A)
