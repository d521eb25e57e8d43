"""GPT-2 in plain torch with a static cache, one compiled call per token: the strongest torch peer.

Letters: B rows, T tokens per call, S cache slots, H heads, K head width, D width, V vocabulary.
The layout follows gpt-fast: keys and values in preallocated buffers, written in place, a mask over
all slots, `torch.compile` around one step. `load` takes the weights of a transformers model.
"""

import torch
import torch.nn.functional as F
from torch import nn


class Layer(nn.Module):
  """One block with its own cache."""

  def __init__(self, width, heads, rows, slots):
    super().__init__()
    self.heads = heads
    self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
    self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
    self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
    for name in ('k_BHSK', 'v_BHSK'):
      zeros = torch.zeros(rows, heads, slots, width // heads)
      self.register_buffer(name, zeros, persistent=False)

  def forward(self, x_BTD, t_T, mask_TS):
    """The residual stream after this block."""
    B, T, D = x_BTD.shape
    qkv = self.qkv(self.ln_1(x_BTD)).view(B, T, 3, self.heads, D // self.heads)
    q_BHTK, k_BHTK, v_BHTK = qkv.permute(2, 0, 3, 1, 4)
    self.k_BHSK[:, :, t_T], self.v_BHSK[:, :, t_T] = k_BHTK, v_BHTK
    y = F.scaled_dot_product_attention(q_BHTK, self.k_BHSK, self.v_BHSK, attn_mask=mask_TS)
    x_BTD = x_BTD + self.out(y.transpose(1, 2).reshape(B, T, D))
    return x_BTD + self.down(F.gelu(self.up(self.ln_2(x_BTD)), approximate='tanh'))


class Decoder(nn.Module):
  """GPT-2 for generation."""

  def __init__(self, layers, width, heads, vocab, context, rows, slots):
    super().__init__()
    self.slots = slots
    self.embed, self.place = nn.Embedding(vocab, width), nn.Embedding(context, width)
    self.layers = nn.ModuleList(Layer(width, heads, rows, slots) for _ in range(layers))
    self.ln_f = nn.LayerNorm(width)
    for p in (self.embed.weight, self.place.weight):
      nn.init.normal_(p, std=0.02)

  def forward(self, ids_BT, t_T):
    """float32 logits BV after the last of these tokens, at positions t_T."""
    mask_TS = torch.arange(self.slots, device=t_T.device)[None] <= t_T[:, None]
    x_BTD = self.embed(ids_BT) + self.place(t_T)
    for layer in self.layers:
      x_BTD = layer(x_BTD, t_T, mask_TS)
    return F.linear(self.ln_f(x_BTD[:, -1]), self.embed.weight).float()


def load(decoder, peer):
  """Copy the weights of a transformers GPT2LMHeadModel into a Decoder."""
  copy = lambda linear, conv: (linear.weight.data.copy_(conv.weight.T), linear.bias.data.copy_(conv.bias))
  body = peer.transformer
  decoder.embed.load_state_dict(body.wte.state_dict())
  decoder.place.load_state_dict(body.wpe.state_dict())
  decoder.ln_f.load_state_dict(body.ln_f.state_dict())
  for ours, theirs in zip(decoder.layers, body.h, strict=True):
    ours.ln_1.load_state_dict(theirs.ln_1.state_dict())
    ours.ln_2.load_state_dict(theirs.ln_2.state_dict())
    copy(ours.qkv, theirs.attn.c_attn)
    copy(ours.out, theirs.attn.c_proj)
    copy(ours.up, theirs.mlp.c_fc)
    copy(ours.down, theirs.mlp.c_proj)


def next_token(logits_BV, top_k):
  """The next token of each row: the likeliest, or a sample of the top_k (as in gpt-fast)."""
  if not top_k:
    return logits_BV.argmax(-1, keepdim=True)
  kth_B1 = torch.topk(logits_BV, top_k)[0][:, -1:]
  probs_BV = torch.where(logits_BV < kth_B1, -torch.inf, logits_BV).softmax(-1)
  noise_BV = torch.empty_like(probs_BV).exponential_(1)
  return (probs_BV / noise_BV).argmax(-1, keepdim=True)


def generator(decoder, top_k, mode):
  """(prompt ids BT, new tokens) -> new ids BN, with the step compiled in this torch.compile mode."""

  def step(ids_BT, t_T):
    return next_token(decoder(ids_BT, t_T), top_k)

  compiled_step = torch.compile(step, mode=mode, fullgraph=True)

  @torch.inference_mode()
  def generate(ids_BT, new):
    P, device = ids_BT.shape[1], ids_BT.device
    ids_B1 = step(ids_BT, torch.arange(P, device=device))
    t_1, new_ids = torch.tensor([P], device=device), [ids_B1]
    for _ in range(new - 1):
      ids_B1 = compiled_step(ids_B1, t_1).clone()
      new_ids.append(ids_B1)
      t_1 = t_1 + 1
    return torch.cat(new_ids, 1)

  return generate
