"""Sound from text: what is said, by whom, how far from a real recording, how long, and how new.

Distances are read against copy-synthesis (a real spectrogram through the same vocoder) and against
what the tokenizer makes of the real sound; `chance` is the distance to another example's sound.
Pitch is compared by its median, so that lengths need not agree. The Frechet distance is between
sets, on standardized cepstra; its baseline is that of real held-out sounds to training sounds, of
which it is read as a multiple: there are 401 features, so that few sounds are far from any others.

A recognizer is another trained run that makes text of sounds: its error rates on what was made
stand beside those on real recordings, its floor. It is independent of what it judges as far as it
reads sounds otherwise: frames, or the codes of another tokenizer.

Labels are heard by an exact decoder where the source has one (EXACT), else by judges that learned
from real sounds. A learned judge is worth no more than its figure on copy-synthesis: of clean
keypad tones it learns the noise floor, and hears half of those that went through a vocoder.
"""

import numpy as np

from gpt_jax.data import Piece, templates
from gpt_jax.data.synthetic import keypad
from gpt_jax.evaluation import audio_metrics, judges, text_metrics
from gpt_jax.evaluation.tasks import common

SPEAKER = 'speaker'  # field of a record
EXACT = {'keypad': keypad.decode}  # kind of source: (wave, rate) -> label


def fits(condition, target):
  """Text and nothing else to read, one sound to make."""
  return condition == ('text',) and target == ('audio',)


def run(subject, source, split, limit, recognizer=None, **sampling):
  """Rows for one source; recognizer: the evaluate.Subject of a run that makes text of sounds."""
  found = common.examples(subject, source, split, limit or common.LIMIT)
  train = common.examples(subject, source, 'train', common.TRAIN_LIMIT)
  audio, real = subject.tokenizers.audio, common.waves(subject, found)
  made = subject.generate([example.condition for example in found], 'audio', **sampling)
  sounds = {'': made, 'reconstructions': audio.decode(audio.encode(real))}
  if hasattr(audio, 'spectrogram'):
    sounds['copy-synthesis'] = audio.spectrogram.to_waveforms(audio.spectrogram.log_mel(real))
  rows, add = common.rows('speak', source, split, len(found), **common.drawn(subject, sampling))
  heard = common.waves(subject, train)
  decode = EXACT.get(subject.cfg.data.mixture[source].kind)
  if decode is not None:
    names = [str(example.record['label']) for example in found]
    for of, some in sounds.items():
      decoded = [decode(wave, audio.sample_rate) for wave in some]
      row = common.add_accuracy if of else common.add_judged
      row(add, 'tone_accuracy', decoded, names, chance=0.1, **about(of))
  for metric, field in (('accuracy', common.label_field(train)), ('speaker_accuracy', SPEAKER)):
    if metric == 'accuracy' and decode is not None:
      continue
    if field == SPEAKER and not all(field in example.record for example in (*train, *found)):
      continue
    names, known = common.labels(found, field), common.labels(train, field)
    if common.are_classes(known):
      judged(subject, add, metric, (heard, known), names, real, sounds)
  distances(add, real, sounds, audio.sample_rate)
  sets(add, audio.sample_rate, sounds, real, heard)
  if recognizer is not None:
    recognized(add, recognizer, found, real, sounds, audio.sample_rate)
  return rows


def sets(add, rate, sounds, real, heard):
  """Rows that compare standardized cepstra: how far sets are apart, how near to training sounds."""
  mean, scale = judges.mean_and_scale(train_ND := judges.cepstra(heard, rate))
  features = lambda some: (judges.cepstra(some, rate) - mean) / scale
  train_ND, real_ND = (train_ND - mean) / scale, features(real)
  found = {of: features(some) for of, some in sounds.items()}
  n = min(len(real_ND), len(train_ND))
  if n >= common.FEWEST:
    parts = {of: x[:n] for of, x in found.items()}
    common.add_frechet(add, common.some_of(train_ND, n), real_ND[:n], parts)
  common.add_memorization(add, found[''], real_ND, train_ND)


def about(of):
  """The note of rows on sounds that are not the model's own."""
  return {'of': of} if of else {}


def judged(subject, add, metric, train, names, real, sounds):
  """Rows of two judges with one label of the sounds."""
  chance = common.chance(names)
  for kind, suffix in (('sound', ''), ('sound_neighbor', '_by_neighbor')):
    judge = common.judge(subject, kind, *train)
    ceiling, _ = judge.accuracy(real, names)
    for of, some in sounds.items() if not suffix else [('', sounds[''])]:
      row = common.add_accuracy if of else common.add_judged
      row(add, metric + suffix, judge.predict(some), names, chance=chance, baseline=ceiling, **about(of))


def distances(add, real, sounds, rate):
  """Rows of mel-cepstral distortion after alignment, and of the ratio of lengths."""
  mels = [audio_metrics.log_mel(wave, rate) for wave in real]
  mean = lambda some: float(np.mean([audio_metrics.mcd_dtw(a, b) for a, b in zip(some, mels, strict=True)]))
  rival = {'chance': mean(mels[1:] + mels[:1])} if len(mels) > 1 else {}
  for of, some in sounds.items():
    found = mean([audio_metrics.log_mel(wave, rate) for wave in some])
    add('mel_cepstral_distortion', found, unit='dB', **rival, **about(of))
  pitches(add, real, sounds, rate)
  ratios = [len(a) / max(len(b), 1) for a, b in zip(sounds[''], real, strict=True)]
  add('length_ratio', np.mean(ratios), baseline=1.0)


def pitches(add, real, sounds, rate):
  """Rows of how far the pitch is from that of the real sound, and how much of it has a pitch."""
  wanted = [audio_metrics.pitch(wave, rate) for wave in real]
  for of, some in sounds.items():
    found = [audio_metrics.pitch(wave, rate) for wave in some]
    errors = np.array([audio_metrics.pitch_error(a, b) for a, b in zip(found, wanted, strict=True)])
    if np.isfinite(errors[:, 0]).any():
      add('pitch_error', np.nanmean(errors[:, 0]), unit='semitones', **about(of))
    add('voicing_error', errors[:, 1].mean(), **about(of))


def reader_of(recognizer):
  """The template of a run that makes text of one sound; ValueError if it has none."""
  for source in recognizer.cfg.data.mixture.values():
    condition, target = templates.signature(source.template)
    if sum(kind in common.SOUNDS for kind in condition) == 1 and target == ('text',):
      return source.template
  has = ', '.join(repr(source.template) for source in recognizer.cfg.data.mixture.values())
  raise ValueError(
    f'--recognizer={recognizer.cache_dir.parent} makes no text of a sound: it has {has}\n'
    "fix: name a run with a template such as '{audio:audio} -> {text}'"
  )


def recognized(add, recognizer, found, real, sounds, rate):
  """Rows of how much of its text another model hears wrong, by words and by characters.

  What should be heard is what the recognizer's own template makes of each record.
  """
  template, silence = reader_of(recognizer), np.zeros(1, np.float32)
  fields = {field: silence for kind, field in templates.parse(template) if kind in common.SOUNDS}
  documents = [templates.fill(template, {**x.record, **fields}, x.where) for x in found]
  asked, wanted = zip(*map(templates.split, documents), strict=True)
  audio, wanted = recognizer.tokenizers.audio, [common.text(pieces) for pieces in wanted]
  most = int(audio.max_positions / audio.codes_per_second * rate)  # samples that it can read

  def errors(waves, right):
    waves = [wave[:most] / max(1.0, float(np.abs(wave).max())) for wave in waves]
    put = lambda p, wave: Piece(p.kind, templates.Samples(wave, rate)) if p.kind in common.SOUNDS else p
    given = [[put(p, wave) for p in some] for some, wave in zip(asked, waves, strict=True)]
    texts = recognizer.generate(given, 'text', temperature=0.0)
    rows = text_metrics.score_answers(texts, [[text] for text in right])
    return {name: row['value'] for name, row in rows.items() if name.endswith('error_rate')}

  floor, by = errors(real, wanted), recognizer.cache_dir.parent.name
  for of, some in sounds.items():
    for name, value in errors(some, wanted).items():
      add(name, value, baseline=floor[name], recognizer=by, **about(of))
