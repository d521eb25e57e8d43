"""Judges: frozen classifiers of raw real data that label samples, independent of every tokenizer.

A task asks two judges with different inputs: a sample that fools one is rarely taken for the same by
the other. Publish a judge's accuracy on real held-out data beside every figure that it gives: it is
the ceiling. Judges are cached by a hash of their training data.

Letters: N examples, Y X A image rows, columns, channels, C classes, D features.

Sources: classification accuracy by a frozen classifier and by one that is trained on samples
(Ravuri and Vinyals 2019); audio features as in the free spoken digit data set's measured baselines.
"""

import dataclasses
import functools
import hashlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gpt_jax.evaluation import audio_metrics, metrics
from gpt_jax.runs import digests

VERSION = 5  # of fitted judges: raise it when equal data give another judge
MAX_SIDE = 32  # pixels; images are averaged down until no side is longer
CHANNELS, FEATURES = (20, 40, 40), 128
BATCH, EPOCHS, STEPS, RATE = 128, 10, (300, 6_000), 3e-3  # of the convolutional judge
NEIGHBORS = 20_000  # examples that a nearest-neighbor judge stores
# Parts of a sound, cosine coefficients (all: fewer do not resolve tones), inverse strength of the
# L2 penalty, and the coefficient that weighs half as much as the first; never chosen on a test set.
SOUND_PARTS, SOUND_CEPSTRA, SOUND_C, SOUND_HALF = 10, 40, 0.1, 8


@dataclasses.dataclass(frozen=True)
class Judge:
  """A fitted classifier whose state is arrays: loading one executes no code.

  Each judge has train(inputs, class indices, seed) -> weights, scores(inputs) [N, C], the highest for
  the predicted class, and features(inputs) [N, D], for distances between sets.
  """

  labels: np.ndarray  # [C] str, sorted
  weights: dict  # name -> array

  @classmethod
  def fit(cls, inputs, labels, seed=0, **settings):
    """Return a judge trained on these examples, deterministic; ValueError for fewer than two classes."""
    classes, index = np.unique([str(label) for label in labels], return_inverse=True)
    if len(classes) < 2:
      raise ValueError(
        f'a judge of {len(classes)} class tells nothing apart\nfix: give labels of two or more'
      )
    return cls(classes, cls.train(inputs, index.astype(np.int32), seed, **settings))

  def predict(self, inputs):
    """-> labels [N] str."""
    return self.labels[self.scores(inputs).argmax(1)]

  def accuracy(self, inputs, labels):
    """-> (accuracy, Wilson interval)."""
    return metrics.accuracy(self.predict(inputs).tolist(), [str(label) for label in labels])

  def save(self, file):
    """Write the judge to an open file."""
    np.savez(file, labels=self.labels, **{f'w_{k}': v for k, v in self.weights.items()})

  @classmethod
  def load(cls, path):
    """Read a judge that `save` wrote."""
    with np.load(path) as file:
      weights = {name[2:]: file[name] for name in file.files if name != 'labels'}
      return cls(file['labels'], weights)


class ImageJudge(Judge):
  """A small convolutional network on pixels; its features are the layer before the last."""

  @staticmethod
  def train(images_NYXA, index_N, seed):
    """Train on uint8 images of any one size, shifted by up to a 20th of their size -> weights."""
    images_NYXA = shrink(images_NYXA)
    size = images_NYXA.shape[1:]
    shift = max(size[:2]) // 20
    padded = np.pad(images_NYXA, ((0, 0), (shift, shift), (shift, shift), (0, 0)), mode='edge')
    batch = min(BATCH, len(index_N))
    steps = int(np.clip(EPOCHS * len(index_N) // batch, *STEPS))
    weights = _init(jax.random.key(seed), size, int(index_N.max()) + 1)
    opt_state = ADAMW.init(weights)
    rng = np.random.default_rng(seed)
    rows, columns = np.arange(size[0])[:, None], np.arange(size[1])[None]
    order = np.zeros(0, int)
    for n in range(steps):
      if len(order) < batch:
        order = rng.permutation(len(index_N))
      chosen, order = order[:batch], order[batch:]
      y, x = rng.integers(0, 2 * shift + 1, (2, batch, 1, 1))
      images = padded[chosen[:, None, None], y + rows, x + columns]
      rate = RATE * min(10 * (n + 1) / steps, (1 + np.cos(np.pi * n / steps)) / 2)
      weights, opt_state = _step(weights, opt_state, images, index_N[chosen], np.float32(rate))
    return jax.device_get(weights)

  def scores(self, inputs):
    """-> logits [N, C]."""
    return self._apply(inputs)[1]

  def features(self, inputs):
    """-> float32 [N, 128]."""
    return self._apply(inputs)[0]

  def _apply(self, images_NYXA, rows=256):
    """Features and logits, by batches of one shape."""
    images, outputs = shrink(images_NYXA), []
    for first in range(0, len(images), rows):
      part = images[first : first + rows]
      padded = np.pad(part, ((0, rows - len(part)), (0, 0), (0, 0), (0, 0)))
      outputs.append([np.asarray(x)[: len(part)] for x in _jit_forward(self.weights, padded)])
    return [np.concatenate(x) for x in zip(*outputs, strict=True)]


def shrink(images_NYXA):
  """Average uint8 images down until no side is longer than 32 pixels; edges are repeated."""
  images_NYXA = np.asarray(images_NYXA)
  if images_NYXA.ndim != 4 or images_NYXA.dtype != np.uint8:
    raise ValueError(
      f'images are {images_NYXA.dtype} of shape {images_NYXA.shape}\nfix: give uint8 images [N, Y, X, A]'
    )
  N, Y, X, A = images_NYXA.shape
  k = -(-max(Y, X) // MAX_SIDE)
  if k == 1:
    return images_NYXA
  whole = np.pad(images_NYXA, ((0, 0), (0, -Y % k), (0, -X % k), (0, 0)), mode='edge')
  blocks = whole.reshape(N, whole.shape[1] // k, k, whole.shape[2] // k, k, A)
  return blocks.mean((2, 4), dtype=np.float32).round().astype(np.uint8)


def _strides(size):
  """Strides of the three convolutions: 28 x 28 pixels end as 4 x 4, as do 8 x 8."""
  return (2 if max(size) >= 24 else 1, 2, 2 if max(size) >= 12 else 1)


def _init(key, size, classes):
  """He-normal weights; the last layer is zero."""
  Y, X, A = size
  for stride in _strides((Y, X)):
    Y, X = -(-Y // stride), -(-X // stride)
  shapes = {'dense': (Y * X * CHANNELS[-1], FEATURES)}
  for i, (before, after) in enumerate(zip((A, *CHANNELS[:-1]), CHANNELS, strict=True)):
    width = 3 if i else 5
    shapes[f'conv{i}'] = (width, width, before, after)
  weights = {}
  for n, (name, shape) in enumerate(shapes.items()):
    draw = jax.random.normal(jax.random.fold_in(key, n), shape, jnp.float32)
    weights[name] = draw * (2 / np.prod(shape[:-1])) ** 0.5
    weights[f'{name}_bias'] = jnp.zeros(shape[-1], jnp.float32)
  last = {'out': (FEATURES, classes), 'out_bias': (classes,)}
  return weights | {name: jnp.zeros(shape, jnp.float32) for name, shape in last.items()}


def _forward(weights, images_NYXA):
  """-> (features [N, 128], logits [N, C])."""
  x = images_NYXA.astype(jnp.float32) / 255
  for i, stride in enumerate(_strides(x.shape[1:3])):
    x = _convolve(x, weights[f'conv{i}'], stride)
    x = jax.nn.relu(x + weights[f'conv{i}_bias'][None, None, None])
  x = x.reshape(len(x), -1)
  features = jax.nn.relu(x @ weights['dense'] + weights['dense_bias'][None])
  return features, features @ weights['out'] + weights['out_bias'][None]


def _convolve(x_NYXA, kernel, stride):
  """Convolve by shifted copies and one matmul: for small images faster than XLA's own on a CPU."""
  width, _, channels, _ = kernel.shape
  Y, X = (-(-size // stride) * stride for size in x_NYXA.shape[1:3])
  margin = (width // 2, width // 2 + stride)
  padded = jnp.pad(x_NYXA, ((0, 0), margin, margin, (0, 0)))
  shifts = [(y, x) for y in range(width) for x in range(width)]
  copies = [padded[:, y : y + Y : stride, x : x + X : stride] for y, x in shifts]
  flat = kernel.reshape(width * width * channels, -1)
  return jnp.einsum('NYXA,AB->NYXB', jnp.concatenate(copies, -1), flat)


_jit_forward = jax.jit(_forward)
ADAMW = optax.adamw(1.0, weight_decay=0.01)  # Loshchilov and Hutter 2019; _step applies the schedule


@functools.partial(jax.jit, donate_argnums=(0, 1))
def _step(weights, opt_state, images_NYXA, index_N, rate):
  """One training step on the cross-entropy -> (weights, opt_state)."""

  def loss(weights):
    logits_NC = _forward(weights, images_NYXA)[1]
    return optax.softmax_cross_entropy_with_integer_labels(logits_NC, index_N).mean()

  gradients = jax.grad(loss)(weights)
  with jax.numpy_dtype_promotion('standard'):  # optax raises a float to an integer power
    updates, opt_state = ADAMW.update(gradients, opt_state, weights)
  return jax.tree.map(lambda w, u: w + rate * u, weights, updates), opt_state


class NearestNeighbor(Judge):
  """The label of the nearest training example in the space of `features`."""

  def scores(self, inputs):
    """-> 1 for the class of the nearest example, else 0, [N, C]."""
    nearest_N, _ = metrics.nearest_neighbors(self.features(inputs), self.weights['train'])
    return np.eye(len(self.labels), dtype=np.float32)[self.weights['index'][nearest_N]]


class PixelJudge(NearestNeighbor):
  """The nearest neighbor in raw pixels."""

  @staticmethod
  def train(inputs, index_N, seed):
    """Store a random 20,000 of the examples: files may be sorted by class."""
    chosen = np.random.default_rng(seed).permutation(len(index_N))[:NEIGHBORS]
    train_ND = np.asarray(inputs).reshape(len(inputs), -1)[chosen]
    return {'train': train_ND, 'index': index_N[chosen]}

  def features(self, inputs):
    """-> raw pixels, float32."""
    return np.asarray(inputs).reshape(len(inputs), -1).astype(np.float32)


class SoundJudge(Judge):
  """Logistic regression on the cosine coefficients of a log-mel spectrogram, and the length."""

  @staticmethod
  def train(waves, index_N, seed, rate):
    """Train on float waves of `rate` samples a second. The labels may be words or speakers."""
    from sklearn.linear_model import LogisticRegression

    features_ND, weights = standardized(waves, rate)
    model = LogisticRegression(C=SOUND_C, max_iter=1000, random_state=seed)
    model.fit(features_ND, index_N)
    w, b = model.coef_, model.intercept_
    if len(w) == 1:  # scikit-learn has one row for two classes
      w, b = np.concatenate([-w, w]), np.concatenate([-b, b])
    return weights | {'w': w, 'b': b}

  def scores(self, inputs):
    """-> logits [N, C]."""
    return self.features(inputs) @ self.weights['w'].T + self.weights['b']

  def features(self, inputs):
    """-> standardized features [N, 401]."""
    features_ND = cepstra(inputs, int(self.weights['rate']))
    return (features_ND - self.weights['mean']) / self.weights['scale']


class SoundNeighborJudge(NearestNeighbor):
  """The nearest neighbor in the standardized features of SoundJudge."""

  @staticmethod
  def train(waves, index_N, seed, rate):
    """Store the features of all sounds."""
    features_ND, weights = standardized(waves, rate)
    return weights | {'train': features_ND, 'index': index_N}

  features = SoundJudge.features


def standardized(waves, rate):
  """Standardized cepstra of a training set, and the weights by which SoundJudge standardizes others.

  High coefficients tell tones apart but blur words: they weigh less.
  """
  features_ND = cepstra(waves, rate)
  lifter_D = 1 + np.append(np.tile(np.arange(SOUND_CEPSTRA), SOUND_PARTS), 0) / SOUND_HALF
  mean_D, scale_D = features_ND.mean(0), (features_ND.std(0) + 1e-6) * lifter_D
  return (features_ND - mean_D) / scale_D, {'mean': mean_D, 'scale': scale_D, 'rate': np.array(rate)}


def cepstra(waves, rate):
  """Features [N, 10 * 40 + 1] of waves: 40 cosine coefficients averaged over tenths; seconds."""
  from scipy.fft import dct

  rows = []
  for wave in waves:
    x_JD = dct(audio_metrics.log_mel(wave, rate), norm='ortho', axis=1)[:, :SOUND_CEPSTRA]
    total_JD = np.concatenate([np.zeros((1, SOUND_CEPSTRA)), np.cumsum(x_JD, 0)])
    edges = np.linspace(0, len(x_JD), SOUND_PARTS + 1)  # a part may hold fractions of frames
    low = np.minimum(edges.astype(int), len(x_JD) - 1)
    until = total_JD[low] + (edges - low)[:, None] * x_JD[low]
    rows.append(np.append(np.diff(until, axis=0) / np.diff(edges)[:, None], len(wave) / rate))
  return np.stack(rows)


def fit_cached(kind, cache_dir, inputs, labels, seed=0, **settings):
  """Return the judge JUDGES[kind] fitted to this data, read from a file if it was fitted before."""
  digest = hashlib.sha256(repr((kind, VERSION, seed, sorted(settings.items()))).encode())
  for x, label in zip(inputs, labels, strict=True):
    digest.update(repr((np.shape(x), str(label))).encode() + np.ascontiguousarray(x).tobytes())
  path = Path(cache_dir) / 'judges' / f'{kind}-{digest.hexdigest()[:16]}.npz'
  write = lambda file: JUDGES[kind].fit(inputs, labels, seed, **settings).save(file)
  return JUDGES[kind].load(digests.write_or_verify(path, write))


JUDGES = {
  'image': ImageJudge,
  'pixels': PixelJudge,
  'sound': SoundJudge,
  'sound_neighbor': SoundNeighborJudge,
}
