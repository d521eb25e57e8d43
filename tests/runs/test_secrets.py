"""No secret is kept: every kind in a config, the environment, a command, a message and a diff.

The secrets are drawn when the test runs, so that this file holds none.
"""

import io
import random
import string
import subprocess
import sys
import time

import pytest

from gpt_jax.runs import provenance, run_folder, secrets

HEX, BASE36 = '0123456789abcdef', string.ascii_lowercase + string.digits
ALNUM, BASE64 = string.ascii_letters + string.digits, string.ascii_letters + string.digits + '+/'


def draw(alphabet, count, seed=0):
  return ''.join(random.Random(seed).choices(alphabet, k=count))


def pem(kind, dashes='-' * 5):
  body = '\n'.join(draw(BASE64, 64, seed) for seed in range(6))
  return f'{dashes}BEGIN {kind}{dashes}\n{body}\n{dashes}END {kind}{dashes}'


SECRETS = {  # name: (text that holds the secret, the part that must not be kept)
  name: value if isinstance(value, tuple) else (value, value)
  for name, value in {
    'AWS key': 'AK' + 'IA' + draw(string.ascii_uppercase, 16),
    'AWS secret': (f'aws_secret_access_key = "{draw(BASE64, 40, 3)}"', draw(BASE64, 40, 3)),
    'AWS secret alone': draw(BASE64, 40, 3),
    'Google key': 'AI' + 'za' + draw(ALNUM, 35),
    'Google service account': (f'"private_key": "{pem("PRIVATE KEY")}"', draw(BASE64, 64, 2)),
    'OpenSSH key': (pem('OPENSSH PRIVATE KEY'), draw(BASE64, 64, 2)),
    **{f'GitHub {kind}': f'gh{kind}_' + draw(ALNUM, 36) for kind in 'pousr'},
    'GitHub fine-grained': 'github' + '_pat_' + draw(ALNUM, 40),
    'GitLab': 'gl' + 'pat-' + draw(ALNUM, 20),
    'Slack bot': 'xo' + 'xb-' + draw(string.digits, 12) + '-' + draw(ALNUM, 24),
    'Slack webhook': 'https://hooks.slack' + '.com/services/T' + draw(ALNUM, 8) + '/' + draw(ALNUM, 24),
    'npm': 'npm' + '_' + draw(ALNUM, 36),
    'PyPI': 'py' + 'pi-AgE' + draw(ALNUM, 80),
    'Hugging Face': 'h' + 'f_' + draw(ALNUM, 34),
    'OpenAI': 's' + 'k-proj-' + draw(ALNUM, 48),
    'Anthropic': 's' + 'k-ant-api03-' + draw(ALNUM, 90) + 'AA',
    'Stripe': 's' + 'k_live_' + draw(ALNUM, 24),
    'Twilio': 'S' + 'K' + draw(HEX, 32),
    'SendGrid': 'S' + 'G.' + draw(ALNUM, 22) + '.' + draw(ALNUM, 43),
    'JSON web token': 'ey' + 'J' + draw(ALNUM, 20) + '.ey' + 'J' + draw(ALNUM, 40) + '.' + draw(ALNUM, 43),
    'basic auth': ('https://me:' + 'open5esame@host/x', 'open5esame'),
    'access_token': ('https://host/x?a=1&access' + '_token=open5esame', 'open5esame'),
    'api_key': ('https://host/x?api' + '_key=open5esame', 'open5esame'),
    'W&B': draw(HEX, 40),
    'password': ('password' + '="open5esame"', 'open5esame'),
    'secret': ('client_' + "secret='open5esame'", 'open5esame'),
    'bearer': ('Authorization: Bearer ' + draw(ALNUM, 24), draw(ALNUM, 24)),
    'random letters and digits': draw(ALNUM, 32),
    'random small letters and digits': draw(BASE36, 36),
  }.items()
}


@pytest.mark.parametrize('name', SECRETS)
def test_no_secret_is_kept(name, tmp_path, monkeypatch):
  text, secret = SECRETS[name]
  # A config is refused, whatever the key and however deep.
  for config in ({'a': {'b': text}}, {'data': {'mixture': {'x': {'path': ['y', text]}}}}):
    with pytest.raises(ValueError, match='holds a secret') as error:
      run_folder.check_workdir(tmp_path / 'run', config)
    assert secret not in str(error.value)
  # Command line, environment, messages and logs.
  monkeypatch.setenv('SOME_VARIABLE', text)
  monkeypatch.setattr('sys.orig_argv', ['python', 'launch.py', f'--config.a={text}', '--text', text])
  assert secret not in str(provenance.versions())
  for message in (
    text,
    f'cannot open {text}: no such file',
    f"login('{text}')",
    f'x={text}\nnext',
    f'error: {text}',
  ):
    assert secret not in secrets.redact(message), message
  # Files of every kind in a diff: the lines that hold it, and no others.
  for code, line in ((True, f"x = '''{text}'''" if '\n' in text else f'x = {text!r}'), (False, text)):
    diff = ''.join(f'+{part}\n' for part in ['first = 1', *line.split('\n'), 'last = 2'])
    redacted, counts = secrets.redact_lines(diff, code)
    assert secret not in redacted and redacted.startswith('+first = 1\n') and redacted.endswith('+last = 2\n')
    assert redacted.count('\n') == diff.count('\n') and sum(counts.values()) == redacted.count('[redacted: ')


@pytest.mark.parametrize(
  'text',
  [
    f'commit {draw(HEX, 40)}',
    f'sha256 {draw(HEX, 64)}',
    f'{draw(HEX, 64)}  model.safetensors',
    f'--hash=sha256:{draw(HEX, 64)}',
    f'cache/models--org--name/snapshots/{draw(HEX, 40)}/config.json',
    f'index {draw(HEX, 40)}..{draw(HEX, 40)} 100644',
    f'diff --git a/x.py b/x.py\nindex {draw(HEX, 7)}..{draw(HEX, 7)} 100644\n',
    'DeepSeek-R1-Distill-Qwen-32B-GGUF-Q4_K_M',
    'meta-llama/Llama-3.1-405B-Instruct-FP8',
    '/data/ILSVRC2012/TrainImages/n01440764_10026.JPEG',
    'runs/ablate-norms/runs/norm=rms,positions=rope/seed0',
    'test_that_a_run_of_1000_steps_in_bfloat16_on_v5e_256_is_fast',
    'max_new_tokens=64, eos_token="<|endoftext|>", key=jax.random.key(0)',
    'monkey = "banana"; token_ids_BT = 5; keys = ["a"]',
    'api_key = os.environ["API_KEY"]',
    'password = None',
    'the secret of a password: none',
    'https://host/x?page=2&sort=key',
    'BTD,DHK->BTHK',
  ],
)
def test_hashes_names_and_code_are_no_secrets(text):
  assert secrets.redact_lines(text, code=True) == (text, {})


ORDINARY = r"""
/home/jane/data/books/*.txt
~/datasets/LibriSpeech/train-clean-100
/mnt/nfs/project_2024/run_0012/seed3
gs://my-bucket/datasets/c4/en/3.0.1
s3://company-ml-us-east-1/corpora/fineweb-edu/CC-MAIN-2024-10/000_00000.parquet
/scratch/users/j.doe/experiments/2026-11-29/gpt2-124M-lr3e-4-wd0.1-bs512-seed1337
runs/20261129-035012
runs/book-20261129-035012-shakespeare_char
/data/ILSVRC2012/train/n01440764/n01440764_10026.JPEG
/data/coco/train2017/000000391895.jpg
/data/VCTK-Corpus-0.92/wav48_silence_trimmed/p225/p225_001_mic1.flac
/data/LJSpeech-1.1/wavs/LJ001-0001.wav
/data/LibriTTS_R/train-clean-360/1034/121119/1034_121119_000005_000001.wav
/data/audioset/eval/YtA8_S0JEUtkx0U.wav
/data/youtube/dQw4w9WgXcQ.mp4
/data/videos/2019-07-04T12-30-00_GoPro_GH010123.MP4
meta-llama/Llama-3.1-405B-Instruct-FP8
deepseek-ai/DeepSeek-R1-Distill-Qwen-32B
TheBloke/Mixtral-8x7B-Instruct-v0.1-GPTQ
Qwen/Qwen2.5-Coder-32B-Instruct-GPTQ-Int4
mistralai/Mistral-Small-3.1-24B-Base-2503
google/gemma-3-27b-it-qat-q4_0-gguf
openai/whisper-large-v3-turbo
facebook/wav2vec2-large-960h-lv60-self
laion/CLIP-ViT-bigG-14-laion2B-39B-b160k
timm/vit_base_patch16_clip_224.laion2b_ft_in12k_in1k
unsloth/Meta-Llama-3.1-8B-Instruct-bnb-4bit
nvidia/Llama-3.1-Nemotron-70B-Instruct-HF
bartowski/Llama-3.2-3B-Instruct-Q4_K_M-GGUF
EleutherAI/pythia-1.4b-deduped-v0
microsoft/Phi-3-mini-128k-instruct-onnx
stabilityai/stable-diffusion-xl-base-1.0
HuggingFaceTB/SmolLM2-135M-Instruct
allenai/OLMo-2-1124-7B-SFT
tiiuae/falcon-180B-chat
bigscience/bloomz-7b1-mt
01-ai/Yi-1.5-34B-Chat-16K
CohereForAI/c4ai-command-r-plus-08-2024
databricks/dbrx-instruct
intfloat/multilingual-e5-large-instruct
/data/dvc/files/md5/b0/d811ad4f1d6147cd28a5d400a8ffe0
/data/cache/text-train-c83db5b1a1ac97a4.ids.npy
98431c1b34ba
b8d1a1b5aba3d38a
550e8400-e29b-41d4-a716-446655440000
/data/550e8400-e29b-41d4-a716-446655440000/a.jsonl
runs/550e8400-e29b-41d4-a716-446655440000
arn:aws:s3:::my-bucket/train/shard-00012-of-01024.tar
/mnt/ebs/vol-0a1b2c3d4e5f67890/data
/kaggle/input/tiny-shakespeare/input.txt
/content/drive/MyDrive/Colab Notebooks/gpt/data.txt
C:\Users\Jane\Documents\books
/Users/jane/Library/Mobile Documents/com~apple~CloudDocs/books
/tmp/pytest-of-root/pytest-12/test_x0/run
/dev/shm/tmpd3hkeluk/world
/var/folders/zz/zyxvpxvq6csfxvn_n0000000000000/T/tmpabcd1234
/gpfs/scratch/prj-0123/u1234567/job.9876543.0/out
/lustre/fsw/coreai_dlalgo_llm/users/x/checkpoints/iter_0012000
shard_{00000..01023}.tar
part-00000-tid-7286412345678901234-8d5e3c2b-1a2b-4c3d-9e8f-0a1b2c3d4e5f-123-1-c000.snappy.parquet
train-00000-of-00001-b21b867320fae5ca.parquet
data-00017-of-01024.arrow
0000.parquet
CC-MAIN-20240221040000-20240221070000-00001.warc.gz
wikipedia-20231101.en
WMT14_de-en_newstest2014
en-de.tsv.gz
IWSLT2017/en-de
common_voice_17_0_en_clips_38024627.mp3
{image:image} -> {name}
translate en de: {en} -> {de}
(?P<digit>\d)_(?P<speaker>[a-z]+)_(?P<take>\d+)\.wav
speaker=theo|lucas,digit=3
Once upon a time, there was a princess
The password of the castle was lost
secret agent 007
ACGTACGTACGTTAGCTAGCTAGCTAACGATCGATCGATC
MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPILSRVGDGTQDNLSGAEKAVQVKVKALPDAQFEVV
CC(=O)OC1=CC=CC=C1C(=O)O
CN1C=NC2=C1C(=O)N(C(=O)N2C)C
rnbqkbnr/pppppppp/8/8/8/8/PPPPPPPP/RNBQKBNR w KQkq - 0 1
abcdefghijklmnopqrstuvwxyz0123456789
ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789
qwertyuiopasdfghjklzxcvbnm1234567890
gpt2-124M_L12_H12_D768_T1024_B512_lr6e-4_wd1e-1_b1_0.9_b2_0.95_clip1.0_seed1337
exp017_ablation_rope_vs_alibi_L6D384H6_T256_bs64x4_cosine_wu100
bs128_lr3e-4_L4_D256_H8_fp32_v2
layers=6,width=384,heads=6,context=256
NVIDIA-H100-80GB-HBM3
ubuntu-22.04-cuda12.4-cudnn9-py311
registry.example/gpt_jax:1
us-central1-docker.pkg.dev/my-project-123456/ml/gpt_jax:v0.3.1-cu124-20261129
projects/my-project-123456/locations/us-central1/tensorboards/1234567890123456789
my-team/gpt-jax-runs
emoji/1F468-200D-1F469-200D-1F467.png
noto/emoji_u1f468_1f3fb_200d_2764_200d_1f48b_200d_1f468_1f3ff.png
tiles/18/137234/89652@2x.png
Screenshot 2026-11-29 at 03.50.12.png
IMG_20261129_035012_HDR.jpg
DSC_0001-Enhanced-NR.tif
S1A_IW_GRDH_1SDV_20200101T000000_20200101T000025_030600_038189_1A2B.tif
LC08_L1TP_139045_20170304_20170316_01_T1_B4.TIF
GSM1234567_sample12_R1_001.fastq.gz
ENSG00000139618.txt
9780262035613.epub
arXiv_src_2401_001.tar
2401.12345v2.pdf
doi:10.1145/3292500.3330701
PMC7654321.nxml
W&B run 3k2j9x1q
run-20261129_035012-3k2j9x1q
lightning_logs/version_12/checkpoints/epoch=9-step=12345.ckpt
checkpoint-12000/pytorch_model-00001-of-00003.bin
/nix/store/0c0v3s1pl4vp9hsxx6d5pvvvd0dc1m8q-python3-3.11.9/bin/python
/home/me/.conda/envs/jax_0.10.2_cuda12/bin/python
/opt/Kt0X/bKq2/archives/2024
mnist/train-*-ubyte.gz
mnist/t10k-images-idx3-ubyte.gz
AudioMNIST/data/01/0_01_0.wav
FSDD/recordings/7_jackson_32.wav
SpeechCommands_v0.02/bed/00176480_nohash_0.wav
speech_commands/four/0a2b400e_nohash_0.wav
ESC-50/audio/1-100032-A-0.wav
UrbanSound8K/audio/fold5/100032-3-0-0.wav
GTZAN/genres_original/blues/blues.00000.wav
NSynth/nsynth-train/audio/bass_synthetic_033-022-050.wav
CelebA-HQ/00000.jpg
FFHQ/thumbnails128x128/00000.png
openimages/train_0/000002b66c9c498e.jpg
openimages/0a1c2f4d5b6e7f80.jpg
places365/a/airfield/00000001.jpg
flickr30k/1000092795.jpg
flickr/53012345678_0a1b2c3d4e_k.jpg
imagenet-21k/n00004475/n00004475_6590.JPEG
tiny-imagenet-200/train/n01443537/images/n01443537_0.JPEG
VOC2012/JPEGImages/2007_000027.jpg
cityscapes/leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png
kitti/2011_09_26_drive_0001_sync/image_02/data/0000000000.png
nuscenes/n015-2018-07-24-11-22-45+0800__CAM_FRONT__1532402927612460.jpg
waymo/segment-10017090168044687777_6380_000_6400_000_with_camera_labels.tfrecord
kinetics/--07WQ2iBlw_000001_000011.mp4
voxceleb/id10270/5r0dWxy17C8/00001.wav
voxceleb1/id10001/1zcIwhmdeo4/00001.wav
TEDLIUM_release-3/data/sph/AaronHuey_2010X.sph
ami/ES2002a/ES2002a.Mix-Headset.wav
fleurs/en_us/10004088536354799741.wav
librilight/6454/8963_Fairy_Tales_LibriVox_64kb_mp3/01.flac
/var/folders/2i/8r71sge_f82tdwwrpl0ax3n5ge9rzf/T/tmp
/content/drive/H3dlGOdcZKLYlMXEhrVLyCVoi9GJm3gtt/books
ACCACGCCCCTGGGCCTACTTACCATTGAGCGCTAAATGCCGCGTTAGAGGCCTCGGTAG
99930018055873690051839534891847
"""


def test_ordinary_paths_and_names_are_no_secrets():
  """Of data sets, models, caches, experiments, images; sequences and long numbers; and with drawn hashes."""
  folders = [f'gpt2/snapshots/{draw(HEX, 40)}', f'org/model@{draw(HEX, 40)}', f'/data/{draw(HEX, 32)}/a.wav']
  values = [*ORDINARY.strip().splitlines(), *folders, draw(HEX, 64), f'{draw(HEX, 32)}.png']
  assert len(values) > 100
  for value in values:
    secrets.check_secrets({'data': {'mixture': {'own': {'path': value}}}, 'train': {'init_from': value}})
    assert secrets.redact(f'cannot read {value}: no such file') == f'cannot read {value}: no such file'


def test_a_redacted_stream_passes_whole_lines():
  plain = io.StringIO()
  stream = secrets.RedactedStream(plain)
  print('password', 'open5esame', sep='=', file=stream, end='')
  assert plain.getvalue() == ''
  print(';\nloss 1.5', file=stream)
  assert plain.getvalue() == 'password=[redacted: password or key]\nloss 1.5\n'


def test_a_redacted_stream_drops_a_private_key_of_any_length_and_loses_no_other_line():
  plain = io.StringIO()
  stream = secrets.RedactedStream(plain)
  body = [draw('ABCDEFGHabcdefgh0123456789+/', 64, seed) for seed in range(500)]
  print(
    'before', '-----BEGIN RSA PRIVATE KEY-----', *body, '-----END RSA PRIVATE KEY-----', sep='\n', file=stream
  )
  print(' 5%\r10%', file=stream, end='')
  assert plain.getvalue() == 'before\n[redacted: private key]\n 5%\r'
  stream.write_rest()
  assert plain.getvalue().endswith('\r10%')
  stream.write('a ' * (1 << 16))  # nothing waits without a bound
  assert not stream.rest


WORKER = """
import sys
from gpt_jax.ablation.execute import worker
def job(*_):
  print('to stdout: password="open5esame"')
  print('to stderr: password="open5esame"', file=sys.stderr)
  return {}
worker.train_job = job
sys.exit(worker.main())
"""


def test_no_secret_is_kept_in_the_log_of_a_worker():
  done = subprocess.run(
    [sys.executable, '-c', WORKER], input='{}\n', capture_output=True, text=True, timeout=60
  )
  assert done.returncode == 0, done.stderr
  assert 'open5esame' not in done.stdout + done.stderr
  assert done.stderr.count('[redacted: password or key]') == 2


def test_a_key_of_hexadecimal_digits_is_one_but_by_its_name(tmp_path):
  text = draw(HEX, 40)
  for key in ('a', 'wandb', 'data_source'):
    with pytest.raises(ValueError, match='holds a secret'):
      secrets.check_secrets({'log': {key: text}})
  secrets.check_secrets({'source': {'revision': text}, 'data': {'digest': draw(HEX, 64), 'seed': 12345678}})


def test_the_file_of_the_secret_of_private_training_may_be_named():
  secrets.check_secrets({'privacy': {'secret': 'keys/secret.key'}})
  with pytest.raises(ValueError, match='config.privacy.secret holds a secret'):
    secrets.check_secrets({'privacy': {'secret': f'hf_{draw(HEX, 30)}'}})
  with pytest.raises(ValueError, match='config.data.secret holds a secret'):
    secrets.check_secrets({'data': {'secret': 'keys/secret.key'}})


def test_long_lines_take_linear_time():
  """A quarter of a megabyte without a line break."""
  for text in ('token' * 50_000, 'a: ' * 75_000, '"key": "x", ' * 25_000, 'secret=' * 35_000, '-' * 250_000):
    before = time.perf_counter()
    secrets.redact_lines(text)
    assert time.perf_counter() - before < 20
