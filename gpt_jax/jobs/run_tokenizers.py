"""The tokenizers of a GPT's run: built from the config, taken from a run, checked against the mixture."""

import dataclasses

from gpt_jax import data, losses, tokenizers
from gpt_jax.data import stages, templates, vectors
from gpt_jax.data.documents import needed_specials
from gpt_jax.model.continuous import KINDS
from gpt_jax.runs import ancestry, records, run_folder
from gpt_jax.sampling import prompts
from gpt_jax.tokenizers import in_step, readers

KINDS_OF_ENCODERS = ('patches', 'frames')


def template_kinds(cfg):
  """Return the kinds of content in the templates of the mixture, such as {'text', 'image'}."""
  sides = (side for source in cfg.data.mixture.values() for side in templates.signature(source.template))
  return {kind for side in sides for kind in side}


def build(cfg, workdir):
  """Return the tokenizers of the run folder, or of its parent, or new ones built from the config."""
  if (workdir / 'tokenizer' / 'vocabulary.json').exists():  # written last
    return tokenizers.Tokenizers.load(workdir / 'tokenizer')
  if parent_of(cfg):
    return of_parent(cfg)
  # An alphabet must cover the validation text; merges must not be learned from it.
  splits = ('train', 'valid') if cfg.tokenizer.kind == 'chars' else ('train',)
  texts = lambda: (text for split in splits for _, text in data.documents(cfg.data, split))
  text = tokenizers.text.build(cfg.tokenizer, texts)
  check_modalities(cfg)
  return tokenizers.Tokenizers.build(text, *_media(cfg), readers=open_readers(cfg))


def _media(cfg, names=tokenizers.base.MODALITIES):
  """Return the image and the audio tokenizer of a config, None for one that is not named or has no kind."""
  images = lambda: data.load_images(cfg.data, cfg.image.shape)
  waves = lambda: data.load_waveforms(cfg.data, cfg.audio.sample_rate, seconds=cfg.audio.seconds)
  image = tokenizers.image.build(cfg.image, images) if cfg.image.kind and 'image' in names else None
  audio = tokenizers.audio.build(cfg.audio, waves) if cfg.audio.kind and 'audio' in names else None
  return image, audio


def open_readers(cfg, inherited=()):
  """Return {kind of continuous input: reader} of the encoders of a config, and of the vectors of its data.

  Vectors have as many numbers as those of the first record, or of the run whose readers are `inherited`.
  """
  used = template_kinds(cfg)
  for kind, path in cfg.encoder.folders.items():
    if kind not in used:
      key = f'encoder.{KINDS[kind].modality}'
      raise ValueError(
        f'{key}={path} has no use: no template of data.mixture has {kind}\n'
        f"fix: write {{field:{kind}}} in a template, or leave {key}=''"
      )
  default = readers.EncoderConfig()
  unused = {
    'layer': not cfg.encoder.folders,
    'stack': 'vectors' not in used and not cfg.encoder.audio,
    'seconds': not cfg.encoder.audio,
  }
  for key, has_no_use in unused.items():
    if has_no_use and getattr(cfg.encoder, key) != getattr(default, key):
      raise ValueError(
        f'encoder.{key}={getattr(cfg.encoder, key)} has no effect: no encoder or vectors read it\n'
        f'fix: leave it out, or set encoder.audio'
      )
  if cfg.model.projector_parts > 1 and ('patches' in used or cfg.image.kind == 'continuous'):
    raise ValueError(
      f'model.projector_parts={cfg.model.projector_parts} would cut patches, each of which is one vector\n'
      'fix: use model.projector=linear or mlp'
    )
  opened = {
    kind: readers.EncoderReader.open(path, cfg.encoder, kind) for kind, path in cfg.encoder.folders.items()
  }
  if 'vectors' not in used:
    return opened
  width = inherited['vectors'].width if 'vectors' in inherited else first_width(cfg)
  return opened | {'vectors': readers.VectorReader(width, cfg.encoder.stack)}


def first_width(cfg):
  """Return the numbers of a vector in the first record that has one."""
  has_vectors = lambda name: 'vectors' in templates.modalities(cfg.data.mixture[name].template)
  where, pieces = next(iter(data.examples(cfg.data, next(filter(has_vectors, cfg.data.mixture)), 'train')))
  value = next(piece.value for piece in pieces if piece.kind == 'vectors')
  return vectors.read_vectors(value, where=where).shape[1]


def towers(cfg, toks, kinds):
  """Return the towers.Tower of each encoder that is a part of the model; kinds: of the templates.

  Raises ValueError where encoder.train contradicts the readers of the run or other settings.
  """
  inside = {kind: reader for kind, reader in toks.readers.items() if getattr(reader, 'in_step', False)}
  training = cfg.encoder.train
  rules = (
    (
      inside and training == 'cached',
      'and the run that this one begins with has the encoder in the model',
      'encoder.train=frozen, adapters or whole',
    ),
    (
      training != 'cached' and not inside,
      'has no effect: no encoder reads the data',
      'encoder.image or audio',
    ),
    (training == 'adapters' and not cfg.adapter.rank, 'needs a rank, and adapter.rank=0', 'adapter.rank=16'),
    (
      inside and cfg.model.mup_base,
      f'has no rule of muP, and model.mup_base={cfg.model.mup_base}',
      'model.mup_base=0',
    ),
    (
      inside and cfg.train.job != 'gpt',
      f'puts the encoder into the model, which train.job={cfg.train.job} does not train',
      'encoder.train=cached',
    ),
    (
      inside and cfg.privacy.epsilon,
      f'puts the encoder into the model, and privacy.epsilon={cfg.privacy.epsilon} needs gradients of units',
      'encoder.train=cached',
    ),
  )
  for is_wrong, cause, fix in rules:
    if is_wrong:
      raise ValueError(f'encoder.train={training} {cause}\nfix: set {fix}')
  return [in_step.tower_of(reader, training) for kind, reader in inside.items() if kind in kinds]


def parent_of(cfg):
  """Return (config key, folder) of the run whose tokenizers a new run takes; None where it builds its own."""
  parents = {f'train.{key}': getattr(cfg.train, key) for key in ('branch_from', 'init_from')}
  if cfg.train.job == 'distil':
    parents['distil.teacher'] = cfg.distil.teacher
  named = ((key, ancestry.parse_run(name)[0]) for key, name in parents.items() if name)
  return next(named, None)


def of_parent(cfg, media=_media):
  """Return the tokenizers of the run that `parent_of` names, with the specials and codes that it lacks.

  media: function (cfg, names) -> (image, audio) tokenizers; default: read from data.
  """
  key, base = parent_of(cfg)
  base_config = run_folder.read_config(base, key)
  for name in ('tokenizer', 'image', 'audio'):
    sections = getattr(cfg, name), type(getattr(cfg, name))()  # older runs lack newer settings
    wanted, default = (records.to_json(dataclasses.asdict(section)) for section in sections)
    is_new = name != 'tokenizer' and base_config.get(name, {}).get('kind') == ''
    if default | base_config.get(name, {}) != wanted and not is_new:
      raise ValueError(
        f'{key}={base} has the {name} section {base_config.get(name)}, and this config another\n'
        'fix: take that section from its config, as experiments/finetune.py does'
      )
  return _extend(tokenizers.Tokenizers.load(base / 'tokenizer'), cfg, media)


def _extend(toks, cfg, media=_media):
  """Return the tokenizers with the specials and codes that the run needs and they lack."""
  if toks.places:
    check_places(toks, cfg)
  used = (needed_specials(source.template, toks) for source in cfg.data.mixture.values())
  missing = set().union(*used) - {'eos', *dict(toks.vocabulary.specials)}
  new = [name for name in tokenizers.base.MODALITIES if getattr(cfg, name).kind and name not in toks.media]
  if new:
    check_modalities(cfg)
  opened = open_readers(cfg, toks.readers)
  if cfg.encoder.train != 'cached':  # those of an imported model, or of a run that cached their outputs
    rest = {kind: r for kind, r in toks.readers.items() if kind in KINDS_OF_ENCODERS and kind not in opened}
    opened |= {kind: in_step.put_in_step(reader) for kind, reader in rest.items()}
  if new or missing:
    return toks.extend(*media(cfg, new), opened)
  return dataclasses.replace(toks, readers=toks.readers | opened)


def check_places(toks, cfg):
  """Raise ValueError for settings that a run from an imported multimodal model cannot honor."""
  own, used = ' and '.join(toks.places), template_kinds(cfg)
  if 'chat' in used and not toks.text.chat_template:
    raise ValueError(
      'a template of data.mixture has conversations, and the imported model has no chat template\n'
      "fix: write '{question} -> {answer}' with fields of the records"
    )
  for kind in sorted(used & templates.MODALITY.keys()):
    if toks.kind_of(kind) not in toks.places:
      raise ValueError(
        f'a template of data.mixture has {kind}, and the imported model reads {own} alone\n'
        'fix: leave them out of the template, or use another model'
      )
  settings = {'image.kind': cfg.image.kind, 'audio.kind': cfg.audio.kind, 'data.prefix': cfg.data.prefix}
  settings['data.condition_dropout'] = cfg.data.condition_dropout
  settings |= {f'encoder.{name}': getattr(cfg.encoder, name) for name in ('image', 'audio')}
  for key, value in settings.items():
    if value:
      raise ValueError(
        f'{key}={value} is not supported in a run that starts from a model imported with its encoder\n'
        f'fix: leave {key} out'
      )


def check_modalities(cfg):
  """Raise ValueError unless the templates and the tokenizers name the same modalities."""
  used = template_kinds(cfg)
  if used & {'parts', 'chat'}:
    return
  for modality, feature in (('image', 'patches'), ('audio', 'frames')):
    chosen = getattr(cfg, modality).kind
    kinds = {modality} if feature in cfg.encoder.folders else {modality, feature}
    kinds |= {'codes'} if modality == 'audio' else set()
    if used & kinds and not chosen:
      raise ValueError(
        f'a template of data.mixture has {" and ".join(sorted(used & kinds))}, and {modality}.kind is empty\n'
        f'fix: choose an {modality} tokenizer, as in experiments/demo.py, or encoder.{modality} for features'
      )
    if chosen and not used & kinds:
      raise ValueError(
        f'{modality}.kind={chosen} has no use: no template of data.mixture has an {modality}\n'
        f"fix: leave {modality}.kind='', or write {{field:{modality}}} in a template"
      )


def check_flow(cfg, toks):
  """Raise ValueError unless a model has a flow head where pictures are continuous, and in no other case."""
  if toks.makes_patches != bool(cfg.model.flow_layers):
    fix = 'set model.flow_layers=3' if toks.makes_patches else 'set image.kind=continuous, or flow_layers=0'
    raise ValueError(
      f'model.flow_layers={cfg.model.flow_layers} does not fit image.kind={cfg.image.kind!r}: a flow head '
      f'makes continuous pictures, and no others\nfix: {fix}'
    )
  if toks.makes_patches and 'patches' in toks.readers:
    raise ValueError(
      'image.kind=continuous draws patches of pixels, and encoder.image reads pictures as others\n'
      "fix: set encoder.image='', or an image.kind with codes"
    )
  if toks.makes_patches and cfg.train.job != 'gpt':
    raise ValueError(
      f'train.job={cfg.train.job} compares likelihoods, which pictures of image.kind=continuous do not have\n'
      'fix: use a run with codes of pictures'
    )


def check_use(cfg, toks):
  """Raise ValueError for settings that have no effect with this vocabulary or mixture."""
  single = len(toks.modalities) == 1
  useless = {name: name not in toks.modalities for name in losses.MODALITIES}
  useless |= {'balance': single, 'restrict': single}
  for name, is_useless in useless.items():
    value = getattr(cfg.loss, name)
    if is_useless and value != getattr(losses.LossConfig, name):
      raise ValueError(
        f'loss.{name}={value} has no effect: the ids are {", ".join(toks.modalities)}\n'
        f'fix: leave loss.{name}={getattr(losses.LossConfig, name)}'
      )
  specials = [name for name, _ in toks.vocabulary.specials]
  if cfg.sample.begin and cfg.sample.begin not in specials:
    raise ValueError(
      f'sample.begin={cfg.sample.begin!r} is not a special token\nfix: use one of {", ".join(specials)}'
    )
  prompts.check_guidance(cfg.sample, cfg.data)
  stages.check_end(cfg.data.stages, cfg.train.steps)
