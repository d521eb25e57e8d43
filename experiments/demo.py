"""The default experiment: one small GPT for text, handwritten digits and keypad tones, in five tasks.

Tasks: write text, name and draw digits, dial and recognize tones. Text is the language reference that ships
with Python, images are scikit-learn's 8 x 8 digits, sounds are telephone keypad tones: every machine has
them.
Command: launch.py train   Hardware: 2 CPU cores   Minutes: 4
"""

from gpt_jax import config as configs


def get_config(arg=''):
  """Return the config; it takes no arguments."""
  configs.arguments(arg)
  config = configs.default()
  config.tokenizer.update(kind='bpe', vocab=1024)
  config.image.update(kind='pixels', height=8, width=8, patch=1, values=17)
  config.audio.update(kind='frames', codes=64)
  config.data.update(packing='first_fit', condition_dropout=0.1)
  config.data.mixture = {
    'write': {'template': '{text}', 'weight': 3.0},
    'draw': {'kind': 'digits', 'template': '{name} -> {image:image}', 'weight': 3.0},
    'name': {'kind': 'digits', 'template': '{image:image} -> {name}', 'weight': 2.0},
    'dial': {'kind': 'keypad', 'template': '{name} -> {audio:audio}'},
    'listen': {'kind': 'keypad', 'template': '{audio:audio} -> {name}'},
  }
  config.model.update(
    layers=4,
    width=128,
    heads=4,
    context=144,
    mlp='relu2',
    qk_norm=True,
    positions='mrope',
    init_projections='zero',
  )
  config.optim.update(name='muon', lr=4e-3, warmup=20, schedule='linear', final_lr=0.0)
  config.train.update(steps=600, batch_size=16, eval_every=200, eval_tokens=8192, sample_every=300)
  config.train.sample_prompts = ('The ', 'A list is ', 'Functions are ')
  config.train.tasks = ('answer', 'draw', 'speak')
  config.sample.update(temperature=0.7, max_new_tokens=80)
  return config
