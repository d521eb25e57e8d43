"""Sounds in whole windows: the silence behind a sound is heard, too, and has places (Voxtral).

Letters: N samples, J frames, M mel bands, T outputs of a window, D width of the encoder.
"""

import numpy as np

from gpt_jax.tokenizers import readers


class WindowReader(readers.EncoderReader):
  """The outputs of an encoder of sounds for all of its windows."""

  @property
  def form(self) -> tuple:
    """(rate in Hz, most seconds) of sounds: several windows are one sound."""
    return readers.RATE, readers.LONGEST

  def _encode(self, items):
    """Return the vectors [P, k D] of each sound, whose log-mel bands are made before it is cut."""
    from gpt_jax.interop.encoders import encoder, log_mel

    bands, result = dict(self.spec.sizes)['M'], []
    for wave_N in items:
      padded_N = np.pad(wave_N, (0, -len(wave_N) % self.window))
      mels_JM = log_mel.log_mel(padded_N[None], bands)[0]
      windows = mels_JM.reshape(len(padded_N) // self.window, -1, bands)
      outputs = []
      for start in range(0, len(windows), readers.BATCH):
        part = windows[start : start + readers.BATCH]
        batch = np.concatenate([part, np.zeros((readers.BATCH - len(part), *part.shape[1:]), part.dtype)])
        outputs += [*encoder.run(self.encoder, batch)[: len(part)]]
      result.append(readers.stacked(np.concatenate(outputs), self.stack))
    return result
