"""Lines of a long loop."""

from gpt_jax.runs import progress


def test_a_line_every_ten_seconds(monkeypatch, capsys):
  seconds = iter([0.0, 5.0, 12.0, 15.0, 23.0])
  monkeypatch.setattr(progress.time, 'monotonic', lambda: next(seconds))
  scored = progress.Progress('perplexity of text', 'tokens', 4096)
  for done in (512, 1024, 1536, 2048):
    scored.report(done)
  assert capsys.readouterr().err.splitlines() == [
    'perplexity of text: 1,024 of 4,096 tokens in 0:12',
    'perplexity of text: 2,048 of 4,096 tokens in 0:23',
  ]
