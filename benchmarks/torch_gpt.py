"""GPT-2 in torch, the training peer: fused QKV, SDPA, fused AdamW, tied head.

The architecture of gpt_jax.model.presets.gpt2 without dropout: pre-LayerNorm, learned positions,
tanh GELU, biases. Letters: as in gpt_jax/model/gpt.py.
"""

import torch
from torch import nn
from torch.nn import functional


class Block(nn.Module):
  """Attention and MLP, each a branch of the residual stream."""

  def __init__(self, width, heads):
    super().__init__()
    self.heads = heads
    self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
    self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
    self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

  def forward(self, x_BTD):
    """One layer."""
    B, T, D = x_BTD.shape
    heads = lambda x_BTD: x_BTD.view(B, T, self.heads, D // self.heads).transpose(1, 2)
    q, k, v = (heads(x) for x in self.qkv(self.attention_norm(x_BTD)).split(D, dim=2))
    y_BHTK = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    x_BTD = x_BTD + self.out(y_BHTK.transpose(1, 2).reshape(B, T, D))
    h_BTF = functional.gelu(self.up(self.mlp_norm(x_BTD)), approximate='tanh')
    return x_BTD + self.down(h_BTF)


class GPT(nn.Module):
  """Token ids and targets -> mean cross-entropy."""

  def __init__(self, layers, width, heads, context, vocab):
    super().__init__()
    self.embed, self.position = nn.Embedding(vocab, width), nn.Embedding(context, width)
    self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
    self.final_norm = nn.LayerNorm(width)
    for p in self.parameters():
      nn.init.normal_(p, std=0.02) if p.dim() > 1 else None

  def forward(self, token_ids_BT, target_ids_BT):
    """Mean loss in nats per target."""
    T = token_ids_BT.shape[1]
    x_BTD = self.embed(token_ids_BT) + self.position.weight[:T]
    for block in self.blocks:
      x_BTD = block(x_BTD)
    logits_BTV = functional.linear(self.final_norm(x_BTD), self.embed.weight)
    return functional.cross_entropy(logits_BTV.flatten(0, 1), target_ids_BT.flatten())


def optimizer(model, lr=1e-3, weight_decay=0.1):
  """Fused AdamW; weight decay on matrices only."""
  decayed = [p for p in model.parameters() if p.dim() > 1]
  others = [p for p in model.parameters() if p.dim() <= 1]
  groups = [{'params': decayed, 'weight_decay': weight_decay}, {'params': others, 'weight_decay': 0.0}]
  return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), fused=True)


def train_step(model, loss_of, optimizer):
  """One optimizer step, gradient clipped to norm 1 -> loss."""
  optimizer.zero_grad(set_to_none=True)
  loss = loss_of(model)
  loss.backward()
  nn.utils.clip_grad_norm_(model.parameters(), 1.0)
  optimizer.step()
  return loss
