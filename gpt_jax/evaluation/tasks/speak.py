"""Sound from text: content, speaker, distance to a real recording, length and novelty.

Samples are drawn as the run's config says. Read distances against copy-synthesis (a real spectrogram
through the same vocoder) and the tokenizer's reconstructions; `chance` is the distance to another
example's sound. Pitch is compared by its median, so that lengths need not agree. The Frechet distance
is between sets of standardized cepstra; read it as a multiple of its baseline, that of real held-out
to training sounds: with 401 features any few sounds are far apart.

A recognizer is another trained run that makes text of sounds: its error rates on samples stand beside
those on real recordings. It judges independently as far as it reads sounds otherwise: frames, or the
codes of another tokenizer. It decodes greedily.

Labels are decoded exactly where the source allows it (EXACT), else by judges that learned from real
sounds. A learned judge is worth no more than its accuracy on copy-synthesis: of clean keypad tones it
learns the noise floor, and mistakes half of those that went through a vocoder.
"""

import numpy as np

from gpt_jax.data import Piece, templates
from gpt_jax.data.synthetic import keypad
from gpt_jax.evaluation import audio_metrics, judges, text_metrics
from gpt_jax.evaluation.tasks import common

EXACT = {'keypad': keypad.decode}  # kind of source: (wave, rate) -> label


def fits(condition, target):
  """Text alone to read, one sound to make."""
  return condition == ('text',) and target == ('audio',)


def run(subject, source, split, limit, recognizer=None, **sampling):
  """Rows for one source; recognizer: the Subject of a run that makes text of sounds."""
  examples, train = common.held_out_and_train(subject, source, split, limit)
  audio, real = subject.tokenizers.audio, common.waves_of(subject, examples)
  rate, train_waves = audio.sample_rate, common.waves_of(subject, train)
  samples = subject.generate([example.condition for example in examples], 'audio', **sampling)
  sounds = {'': samples, 'reconstructions': audio.decode(audio.encode(real))}
  if hasattr(audio, 'spectrogram'):
    sounds['copy-synthesis'] = audio.spectrogram.to_waveforms(audio.spectrogram.log_mel(real))
  rows = common.Rows('speak', source, split, n=len(examples), **common.sampling_fields(subject, sampling))
  judged = {'targets': common.labels(examples, common.label_field(train))}
  if decode := EXACT.get(subject.cfg.data.mixture[source].kind):
    names, train_labels = common.labels(examples, 'label'), common.labels(train, 'label')
    chance = common.chance(names, train_labels)
    labels = {of: [decode(wave, rate) for wave in waves] for of, waves in sounds.items()}
    for of, heard in labels.items():
      rows.add_judged('tone_accuracy', heard, names, chance=chance, of=of)
    judged = dict(targets=names, predictions=labels[''], right=common.matches(labels[''], names))
  fields = {} if decode else {'accuracy': common.label_field(train)}
  if all('speaker' in example.record for example in (*train, *examples)):
    fields['speaker_accuracy'] = 'speaker'
  for metric, field in fields.items():
    names, train_names = common.labels(examples, field), common.labels(train, field)
    if common.are_classes(train_names):
      labels = add_judgments(rows, subject, metric, (train_waves, train_names), names, real, sounds)
      if metric == 'accuracy':
        judged = dict(targets=names, predictions=labels, right=common.matches(labels, names))
  subject.record(rows, examples, media=samples, **judged)
  add_distances(rows, real, sounds, rate)
  add_set_distances(rows, rate, sounds, real, train_waves)
  if recognizer is not None:
    add_recognition(rows, recognizer, examples, real, sounds, rate)
  return rows


def add_set_distances(rows, rate, sounds, real, train_waves):
  """Add rows that compare standardized cepstra: distances of sets, distances to training sounds."""
  train_ND, weights = judges.standardized(train_waves, rate)
  features = judges.SoundJudge((), weights).features
  real_ND = features(real)
  sets = {of: features(waves) for of, waves in sounds.items()}
  n = min(len(real_ND), len(train_ND))
  if n >= common.MIN_SET:
    subsets = {of: set_ND[:n] for of, set_ND in sets.items()}
    rows.add_frechet(common.random_subset(train_ND, n), real_ND[:n], subsets)
  rows.add_memorization(sets[''], sets['reconstructions'], train_ND, real_ND)


def add_judgments(rows, subject, metric, train, names, real, sounds):
  """Add rows of two judges of one kind of label; return the first one's labels of the samples."""
  chance, labels = common.chance(names, train[1]), {}
  for kind, suffix in (('sound', ''), ('sound_neighbor', '_by_neighbor')):
    judge = common.judge(subject, kind, *train)
    ceiling, _ = judge.accuracy(real, names)
    for of, waves in sounds.items() if not suffix else [('', sounds[''])]:
      predictions = judge.predict(waves)
      rows.add_judged(metric + suffix, predictions, names, chance=chance, baseline=ceiling, of=of)
      labels.setdefault(kind, predictions)  # the samples are the first
  return labels['sound']


def add_distances(rows, real, sounds, rate):
  """Add rows of mel-cepstral distortion after alignment, pitch and voicing, and the ratio of lengths."""
  mels = [audio_metrics.log_mel(wave, rate) for wave in real]
  mean = lambda others: float(
    np.mean([audio_metrics.mcd_dtw(a, b) for a, b in zip(others, mels, strict=True)])
  )
  chance = {'chance': mean(mels[1:] + mels[:1])} if len(mels) > 1 else {}
  for of, waves in sounds.items():
    value = mean([audio_metrics.log_mel(wave, rate) for wave in waves])
    rows.add('mel_cepstral_distortion', value, **chance, of=of)
  real_pitches = [audio_metrics.pitch(wave, rate) for wave in real]
  for of, waves in sounds.items():
    pitches = [audio_metrics.pitch(wave, rate) for wave in waves]
    errors = np.array(list(map(audio_metrics.pitch_error, pitches, real_pitches)))
    if np.isfinite(errors[:, 0]).any():
      rows.add('pitch_error', np.nanmean(errors[:, 0]), of=of)
    rows.add('voicing_error', errors[:, 1].mean(), of=of)
  ratios = [len(a) / max(len(b), 1) for a, b in zip(sounds[''], real, strict=True)]
  rows.add('length_ratio', np.mean(ratios), baseline=1.0)


def recognizer_template(recognizer):
  """The template of a run that makes text of one sound; ValueError if it has none."""
  all_templates = [source.template for source in recognizer.cfg.data.mixture.values()]
  for template in all_templates:
    condition, target = templates.signature(template)
    if sum(kind in common.SOUNDS for kind in condition) == 1 and target == ('text',):
      return template
  raise ValueError(
    f'--recognizer={recognizer.cache_dir.parent} makes no text of a sound: it has '
    f'{", ".join(map(repr, all_templates))}\n'
    "fix: name a run with a template such as '{audio:audio} -> {text}'"
  )


def add_recognition(rows, recognizer, examples, real, sounds, rate):
  """Add the word and character error rates of another model's transcripts.

  The reference is the text that the recognizer's own template makes of each record.
  """
  template, silence = recognizer_template(recognizer), np.zeros(1, np.float32)
  fields = {field: silence for kind, field in templates.parse(template) if kind in common.SOUNDS}
  documents = [templates.fill(template, {**x.record, **fields}, x.where) for x in examples]
  conditions, targets = zip(*map(templates.split, documents), strict=True)
  audio, references = recognizer.tokenizers.audio, [[common.text(pieces)] for pieces in targets]
  longest = int(audio.max_positions / audio.codes_per_second * rate)  # samples that it can read

  def error_rates(waves):
    inputs = []
    for pieces, wave in zip(conditions, waves, strict=True):
      sound = templates.Samples(wave[:longest] / max(1.0, float(np.abs(wave).max())), rate)
      inputs.append([Piece(p.kind, sound) if p.kind in common.SOUNDS else p for p in pieces])
    texts = recognizer.generate(inputs, 'text', temperature=0.0)
    scores = text_metrics.score_answers(texts, references)
    return {name: row['value'] for name, row in scores.items() if name.endswith('error_rate')}

  baselines, name = error_rates(real), recognizer.cache_dir.parent.name
  for of, waves in sounds.items():
    for metric, value in error_rates(waves).items():
      rows.add(metric, value, baseline=baselines[metric], recognizer=name, of=of)
