"""No secret is kept: every kind in a config, the environment, a command, a message and a diff.

The secrets are drawn when the test runs, so that this file holds none.
"""

import random
import string
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
  for message in (text, f'cannot open {text}: no such file', f"login('{text}')", f'x={text}\nnext'):
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


def test_a_key_of_hexadecimal_digits_is_one_but_by_its_name(tmp_path):
  text = draw(HEX, 40)
  for key in ('a', 'wandb', 'data_source'):
    with pytest.raises(ValueError, match='holds a secret'):
      secrets.check_secrets({'log': {key: text}})
  secrets.check_secrets({'source': {'revision': text}, 'data': {'digest': draw(HEX, 64), 'seed': 12345678}})


def test_long_lines_take_linear_time():
  """A quarter of a megabyte without a line break."""
  for text in ('token' * 50_000, 'a: ' * 75_000, '"key": "x", ' * 25_000, 'secret=' * 35_000, '-' * 250_000):
    before = time.perf_counter()
    secrets.redact_lines(text)
    assert time.perf_counter() - before < 20
