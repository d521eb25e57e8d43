"""Every file in experiments/ loads, builds, trains and samples; its arguments have an effect."""

import ast
import json

import numpy as np
import pytest

from gpt_jax import config, data, train
from gpt_jax.cli import experiment_file
from gpt_jax.data import media_io
from gpt_jax.data.sources import SOURCES
from gpt_jax.evaluation.tasks import common
from gpt_jax.jobs import language_model, run_tokenizers
from gpt_jax.model import costs
from gpt_jax.runs import run_folder
from gpt_jax.tokenizers import Tokenizers
from tests import command_line, pages, stand_ins, tiny_runs

FILES = sorted(
  path for path in (command_line.ROOT / 'experiments').rglob('*.py') if path.parent.name != 'ablations'
)
SUFFIXES = {'text': '.txt', 'image': '.png', 'audio': '.wav'}


@pytest.fixture(scope='module', autouse=True)
def compiled(tmp_path_factory):
  """Equal programs are compiled once."""
  with tiny_runs.compiled_programs(tmp_path_factory):
    yield


@pytest.fixture(scope='module')
def base(tmp_path_factory):
  """A run to continue."""
  return tiny_runs.finished(tmp_path_factory)


@pytest.fixture(scope='module')
def corpora(tmp_path_factory):
  """A folder with a small stand-in for each corpus that an experiment names."""
  return stand_ins.write_corpora(tmp_path_factory.mktemp('corpora'))


@pytest.fixture
def stand_in(corpora, tmp_path, monkeypatch):
  """GPT_JAX_DATA with small corpora; no other file is reachable by a relative path."""
  monkeypatch.setenv('GPT_JAX_DATA', str(corpora))
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(common, 'LIMIT', 12)
  monkeypatch.setattr(common, 'TRAIN_LIMIT', 120)


def arguments(path):
  """{name: default} that the file's get_config takes, read from its source."""
  calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
  [call] = [c for c in calls if getattr(c.func, 'attr', '') == 'arguments']
  return {word.arg: ast.literal_eval(word.value) for word in call.keywords}


def load(path, base, **chosen):
  """Load the experiment's ConfigDict with these arguments."""
  long = path.stem in ('see', 'transcribe')  # pictures and sounds longer than the rows of the tiny base
  base = '' if long or path.stem == 'sums' else base  # sums trains its own first
  arguments_ = {name: base for name in ('base', 'teacher') if name in arguments(path)} | chosen
  return experiment_file.load_config(f'{path}:' + ','.join(f'{k}={v}' for k, v in arguments_.items()))


def small(path, base, **chosen):
  """Build the Config of the experiment with these arguments, small enough for a test."""
  if 'runlocal' in arguments(path):
    chosen['runlocal'] = 'true'
  loaded = load(path, base, **chosen)
  if loaded.privacy.epsilon:
    pytest.importorskip('dp_accounting', reason="needs pip install -e '.[privacy]'")
  loaded.update_from_flattened_dict(stand_ins.tiny(loaded))
  return config.build(config.Config, loaded)


def expected_samples(cfg):
  """Names of the files that one sampling writes."""
  if cfg.train.job.endswith('_tokenizer'):
    image = cfg.train.job == 'image_tokenizer'
    return ['step_00000002_' + ('reconstructions.png' if image else 'original_then_decoded.wav')]
  names = ['step_00000002.txt'] if cfg.train.sample_prompts else []
  for name, source in cfg.data.mixture.items():
    condition, target = data.signature(source.template)
    if condition and len(target) == 1:
      names += {
        f'step_00000002_{name}{suffix}' for suffix in ('.txt', SUFFIXES[target[0]])
      }  # .txt: conditions
  return sorted(names)


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_every_experiment_builds_with_each_of_its_arguments(path, base, stand_in):
  defaults = arguments(path)
  plain = config.build(config.Config, load(path, base))
  assert config.build(config.Config, json.loads(json.dumps(config.to_dict(plain)))) == plain
  for name, default in defaults.items():
    if isinstance(default, bool):
      changed = config.build(config.Config, load(path, base, **{name: not default}))
      assert changed != plain, name
  with pytest.raises(ValueError) as error:
    experiment_file.load_config(f'{path}:nonsense')
  tiny_runs.assert_two_lines(error.value, "'nonsense' is not known")


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_the_docstring_has_a_command_and_every_argument(path):
  docstring = ast.get_docstring(ast.parse(path.read_text()))
  assert 'Command: ' in docstring and 'launch.py train' in docstring
  for name in arguments(path):
    assert name in docstring, name


# The fast set has one experiment of each kind: all modalities, a tokenizer, fine-tuning. The others compile
# much of the same for ten seconds each. Those that pages of docs/ train are in tests/system/test_pages.py.
FAST = ('demo', 'mnist_fsq', 'finetune')
TRAINED = [
  pytest.param(path, marks=[pytest.mark.slow] * (path.stem not in FAST), id=path.stem)
  for path in FILES
  if path.stem in FAST or path.stem not in pages.trained_experiments()
]


def load_prefer(base, pairs):
  """Load experiments/prefer.py with pairs of one's own."""
  return experiment_file.load_config(f'experiments/prefer.py:base={base},path={pairs}')


@pytest.mark.parametrize(
  'fields, template, prompt',
  [
    ('prompt', '{prompt} -> {chosen}', ''),
    ('instruction input', '{instruction} {input} -> {chosen}', ''),
    ('messages', '{chosen:chat}', ''),
    ('prompt messages', '{chosen:chat}', 'prompt'),
  ],
)
def test_the_fields_of_pairs_choose_the_template(fields, template, prompt, base, tmp_path):
  turns, names = [{'role': 'user', 'content': 'a'}], fields.split()
  answers = dict.fromkeys(('chosen', 'rejected'), turns if 'messages' in names else 'b')
  asked = {name: turns if 'messages' in names else 'a' for name in names if name != 'messages'}
  (tmp_path / 'pairs.jsonl').write_text(json.dumps(asked | answers) + '\n')
  config = load_prefer(base, tmp_path / 'pairs.jsonl')
  assert (config.data.mixture.pairs.template, config.preference.prompt) == (template, prompt)


def test_a_file_without_pairs_is_an_error(base, tmp_path):
  (tmp_path / 'pairs.jsonl').write_text('{"prompt": "a", "good": "b"}\n')
  with pytest.raises(ValueError, match='has no pairs: its first record has prompt, good\nfix: '):
    load_prefer(base, tmp_path / 'pairs.jsonl')


@pytest.mark.parametrize('path', TRAINED)
def test_every_experiment_trains_and_samples(path, base, stand_in, tmp_path):
  cfg = small(path, base)
  result = train.train(cfg, tmp_path / 'run')
  assert result['steps'] == 2
  # Silence is many standard deviations away from tones without pauses.
  assert result['loss'] < (100 if cfg.train.job == 'audio_tokenizer' else 20)
  assert result['valid_loss'] < 20
  assert [event['event'] for event in run_folder.read_events(tmp_path / 'run')][-1] == 'done'
  samples = sorted((tmp_path / 'run/samples').iterdir())
  assert [sample.name for sample in samples] == expected_samples(cfg)
  tasks = {row['task'] for row in result['evaluations'] if 'tokenizer' not in row}
  first = {'gpt': 'perplexity', 'distil': 'perplexity', 'dpo': 'preferences', 'grpo': 'grpo'}.get(
    cfg.train.job, 'reconstruct'
  )
  assert tasks == {first, *cfg.train.tasks}
  if cfg.train.job == 'gpt' and cfg.train.sample_prompts:
    texts = samples[0].read_text().split('\n---\n')
    assert len(texts) == len(cfg.train.sample_prompts)
    toks = Tokenizers.load(tmp_path / 'run/tokenizer')
    for prompt, text in zip(cfg.train.sample_prompts, texts, strict=True):
      assert text.startswith(prompt)
      assert len(text) > len(prompt) or toks.text.kind != 'chars'


TOKENIZERS = command_line.ROOT / 'experiments/tokenizers'
CHOICES = [
  ('mnist', 'task=read'),
  ('mnist', 'task=draw'),
  ('mnist', 'task=read,continuous'),
  ('mnist', 'head=flow'),
  ('emoji', 'head=flow'),
  ('emoji', 'task=draw,group,pixels=72'),
  ('emoji', 'task=caption,continuous'),
  ('digits_speech', 'task=recognize'),
  ('digits_speech', 'task=speak'),
  ('digits_speech', 'loso=theo'),
  ('tokenizers/fsdd_fsq', 'loso=theo'),
  ('translate', 'to=fr'),
  ('xquad', 'language=de'),
  *(('multimodal', f'only={task}') for task in ('read', 'draw', 'recognize', 'speak', 'text')),
]


@pytest.mark.parametrize('name, chosen', CHOICES)
def test_choices_build_and_use_every_setting(name, chosen, stand_in, tmp_path):
  path = command_line.ROOT / f'experiments/{name}.py'
  plain, loaded = (experiment_file.load_config(f'{path}:{arguments_}') for arguments_ in ('', chosen))
  cfg = config.build(config.Config, loaded)
  assert cfg != config.build(config.Config, plain)
  run_tokenizers.check_modalities(cfg)
  for source in cfg.data.mixture:
    for split in ('train', *(['test'] if cfg.data.mixture[source].has('test') else [])):
      assert next(data.examples(cfg.data, source, split))


def test_a_folder_proposes_its_own_sizes(tmp_path, capsys):
  for label in ('ring', 'bar'):
    for kind in ('pictures', 'sounds'):
      (tmp_path / kind / label).mkdir(parents=True)
    (tmp_path / f'pictures/{label}/1.png').write_bytes(media_io.to_png(np.zeros((26, 60, 3), np.uint8)))
    (tmp_path / f'sounds/{label}/1.wav').write_bytes(media_io.to_wav(np.zeros(12000), 8000))
  (tmp_path / 'pictures/ring/2.png').write_bytes(b'broken')
  recipe = f'{command_line.ROOT}/experiments/folder.py:path={tmp_path}'
  pictures = config.build(config.Config, experiment_file.load_config(f'{recipe}/pictures'))
  assert (pictures.image.height, pictures.image.width) == (24, 24)
  assert pictures.model.context == 36 + len('ring') + 8
  chosen = '2 pictures of 2 classes (bar, ring), 24 x 24 pixels in 36 codes of 64; context 48'
  assert f'{tmp_path}/pictures: {chosen}' in capsys.readouterr().err
  assert [source.bad_records for source in pictures.data.mixture.values()] == [1, 1]
  sounds = config.build(config.Config, experiment_file.load_config(f'{recipe}/sounds,task=name'))
  assert sounds.audio.seconds == 1.5
  [source] = sounds.data.mixture.values()
  records = [fields for _, fields in SOURCES['files'].open(source, 'train').records()]
  assert sorted(fields['label'] for fields in records) == ['bar', 'ring']
  (tmp_path / 'sounds/stray.wav').write_bytes(b'')
  with pytest.raises(ValueError) as error:
    experiment_file.load_config(f'{recipe}/sounds')
  tiny_runs.assert_two_lines(error.value, 'lies in no folder of a class')


def test_a_text_proposes_its_steps(tmp_path, capsys):
  (tmp_path / 'names.txt').write_text('Ada Byron\n' * 4000)
  recipe = f'{command_line.ROOT}/experiments/text.py:path={tmp_path}/names.txt,lines'
  cfg = config.build(config.Config, experiment_file.load_config(recipe))
  assert cfg.train.steps == 200 and cfg.model.context == 64  # six passes of 36,000 characters
  assert '36,000 characters, 4,000 documents; 200 steps' in capsys.readouterr().err
  assert experiment_file.load_config(f'{recipe},steps=7').train.steps == 7


def test_a_table_proposes_its_context(tmp_path, capsys):
  (tmp_path / 'quiz.tsv').write_text('ask\tanswer\nWhy?\tSo.\nHow?\tQuite well.\n')
  recipe = f'{command_line.ROOT}/experiments/table.py:path={tmp_path}/quiz'
  cfg = config.build(config.Config, experiment_file.load_config(f'{recipe}.tsv,question=ask'))
  assert cfg.model.context == len('How?Quite well.') + 4
  [source] = cfg.data.mixture.values()
  assert (source.kind, source.template) == ('csv', '{ask} -> {answer}')
  assert f'{tmp_path}/quiz.tsv: 2 rows, the longest of 15 bytes; context 19' in capsys.readouterr().err
  for wrong, part in (('.tsv', "'question'"), ('.txt', 'is not a table')):
    with pytest.raises(ValueError) as error:
      experiment_file.load_config(f'{recipe}{wrong}')
    tiny_runs.assert_two_lines(error.value, part)


@pytest.mark.parametrize(
  'name, part',
  [('notes', 'has no picture or sound, but 1 files such as ring/a.txt'), ('nowhere', 'is not a folder')],
)
def test_a_folder_without_media_is_refused(tmp_path, name, part):
  (tmp_path / 'notes/ring').mkdir(parents=True)
  (tmp_path / 'notes/ring/a.txt').write_text('no picture')
  with pytest.raises(ValueError) as error:
    experiment_file.load_config(f'{command_line.ROOT}/experiments/folder.py:path={tmp_path}/{name}')
  fix = tiny_runs.assert_two_lines(error.value, part)[1]
  assert name == 'nowhere' or ('.png' in fix and '.wav' in fix)


def test_see_learns_from_vectors_of_all_pictures(stand_in, corpora, tmp_path):
  path = command_line.ROOT / 'experiments/see.py'
  beside = 'runs/emoji_vectors/names.txt'
  cfg = small(path, '', vectors='runs/emoji_vectors', text=beside, task='caption')
  rows = [json.loads(line) for line in (corpora / 'runs/emoji_vectors/rows.jsonl').read_text().splitlines()]
  pictures = [json.loads(line) for line in (corpora / 'runs/emoji.jsonl').read_text().splitlines()]
  keep = ('name', 'group', 'group_split')
  assert [[row[key] for key in keep] for row in rows] == [[row[key] for key in keep] for row in pictures]
  names = (corpora / 'runs/emoji_vectors/names.txt').read_text().splitlines()
  assert names == [row['name'] for row in rows if row['group_split'] == 'train']
  vectors_ND = np.load(corpora / 'runs/emoji_vectors' / rows[0]['vectors'])
  assert vectors_ND.shape == (9, 4) and 0 < vectors_ND.min() < vectors_ND.max() < 1
  result = train.train(cfg, tmp_path / 'run')
  assert result['steps'] == 2 and result['valid_loss'] < 20
  with pytest.raises(ValueError, match='vectors with encoder') as error:
    load(path, '', vectors='runs/emoji_vectors', encoder='siglip-base')
  tiny_runs.assert_two_lines(error.value, 'read in one way')


@pytest.mark.parametrize(
  'name, chosen',
  [
    ('mnist', 'task=fly'),
    ('mnist', 'head=fly'),
    ('folder', 'task=fly'),
    ('see', 'task=fly'),
    ('emoji', 'task=fly'),
    ('emoji', 'head=fly'),
    ('emoji', 'pixels=40'),
    ('tokenizers/emoji_fsq', 'pixels=40'),
    ('digits_speech', 'task=fly'),
    ('digits_speech', 'loso=bob'),
    ('multimodal', 'only=fly'),
    ('tokenizers/fsdd_fsq', 'loso=bob'),
    ('translate', 'to=xx'),
    ('xquad', 'language=xx'),
  ],
)
def test_unknown_choices_are_errors(name, chosen):
  with pytest.raises(ValueError) as error:
    experiment_file.load_config(f'{command_line.ROOT}/experiments/{name}.py:{chosen}')
  fix = tiny_runs.assert_two_lines(error.value, f'config argument {chosen}')[1]
  assert 'use one of' in fix


@pytest.mark.parametrize(
  'tokenizer, users',
  [
    ('mnist_fsq', {'mnist': 'tokens', 'multimodal': 'image'}),
    pytest.param('emoji_fsq', {'emoji': 'tokens'}, marks=pytest.mark.slow),
    pytest.param('fsdd_fsq', {'digits_speech': 'tokens', 'multimodal': 'audio'}, marks=pytest.mark.slow),
  ],
)
def test_experiments_load_their_trained_tokenizers(tokenizer, users, base, stand_in, tmp_path):
  cfg = small(TOKENIZERS / f'{tokenizer}.py', base)
  train.train(cfg, tmp_path / 'codec_run')
  for number, (user, argument) in enumerate(users.items()):
    loaded = small(command_line.ROOT / f'experiments/{user}.py', base, **{argument: tmp_path / 'codec_run'})
    toks = run_tokenizers.build(loaded, tmp_path / str(number))
    modality = cfg.train.job.removesuffix('_tokenizer')
    assert getattr(toks, modality).kind == 'fsq'
    codes = int(np.prod(getattr(cfg, modality).levels))
    assert toks.vocabulary.count(f'{modality}0') == codes


@pytest.mark.parametrize('name', ['mnist', 'emoji', 'digits_speech'])
def test_continuous_inputs_fit_the_context(name, base, stand_in, tmp_path):
  cfg = small(command_line.ROOT / f'experiments/{name}.py', base, continuous='true')
  mesh = train.make_mesh(cfg.mesh)
  job = language_model.LanguageModelJob(cfg, tmp_path / 'run', mesh)
  assert {'patches_BTA', 'frames_BTM'} & set(next(job.loader))


@pytest.mark.parametrize(
  'size, parameters', [('small', 124e6), ('medium', 355e6), ('large', 774e6), ('xl', 1558e6)]
)
def test_the_sizes_of_gpt2(size, parameters):
  loaded = experiment_file.load_config(f'experiments/gpt2.py:size={size}')
  loaded.model.vocab = 50257
  count = costs.count_params(config.build(config.Config, loaded).model)
  assert count == pytest.approx(parameters, rel=0.01)


@pytest.mark.parametrize('preset', ['llama', 'modern'])
def test_the_presets_of_gpt2(preset):
  loaded = config.build(config.Config, experiment_file.load_config(f'experiments/gpt2.py:preset={preset}'))
  assert loaded.model.mlp == {'llama': 'swiglu', 'modern': 'relu2'}[preset]


@pytest.mark.parametrize('argument', ['size=huge', 'preset=gpt9'])
def test_wrong_choices_of_gpt2(argument):
  with pytest.raises(ValueError) as error:
    experiment_file.load_config(f'experiments/gpt2.py:{argument}')
  tiny_runs.assert_two_lines(error.value, argument)


def test_finetuning_continues_the_base(base, stand_in, tmp_path):
  cfg = config.build(config.Config, load(command_line.ROOT / 'experiments/finetune.py', base))
  assert cfg.train.init_from == str(base)
  assert cfg.model == config.of_run(base).model
  assert cfg.tokenizer == config.of_run(base).tokenizer


@pytest.mark.parametrize('name', ['translate', 'summarize', 'xquad'])
def test_a_use_from_a_model_trains_adapters_of_it(name, base, stand_in):
  path, run = command_line.ROOT / f'experiments/{name}.py', config.of_run(base)
  cfg = config.build(config.Config, load(path, base, from_model=base))
  assert (cfg.model, cfg.tokenizer) == (run.model, run.tokenizer)
  assert (cfg.train.init_from, cfg.adapter.rank, cfg.data.prefix) == (str(base), 16, False)
  assert cfg.train.length <= run.model.context
  whole = config.build(config.Config, load(path, base, from_model=base, adapter=0))
  assert not whole.adapter.freezes and whole.model.param_dtype == 'float32'


def test_finetuning_without_a_base():
  with pytest.raises(FileNotFoundError) as error:
    experiment_file.load_config('experiments/finetune.py:base=runs/none-such')
  tiny_runs.assert_two_lines(error.value, 'none-such')
