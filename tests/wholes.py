"""Tiny models of several modalities with random weights, as folders that transformers wrote.

Each has a word-level tokenizer with the specials of its family, and the processor of transformers.
"""

import json

import numpy as np

WORDS = ('the', 'a', 'cat', 'dog', 'sees', 'what', 'is', 'this', 'USER', 'ASSISTANT', ':', '?', '.')
WORDS += ('one', 'two', 'three', 'red', 'green', 'blue')
TEXT = {
  'hidden_size': 24,
  'num_hidden_layers': 2,
  'num_attention_heads': 3,
  'num_key_value_heads': 3,
  'intermediate_size': 40,
  'vocab_size': 48,
  'max_position_embeddings': 64,
}
VISION = {
  'hidden_size': 16,
  'num_hidden_layers': 3,
  'num_attention_heads': 2,
  'intermediate_size': 20,
  'image_size': 15,
  'patch_size': 5,
}
PIL = {'resample': 3, 'do_convert_rgb': True}


def tokenizer(hf, specials, begin=''):
  """A word-level tokenizer of transformers; specials: {role: token}; begin: stands before each text."""
  from tokenizers import Tokenizer, models, pre_tokenizers, processors

  tokens = ['<pad>', '<s>', '</s>', '\n', *WORDS, *specials.values()]
  library = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token='<pad>'))
  library.pre_tokenizer = pre_tokenizers.Sequence(
    [pre_tokenizers.Split('\n', 'isolated'), pre_tokenizers.Split(' ', 'removed')]
  )
  if begin:
    pair = (begin, tokens.index(begin))
    library.post_processor = processors.TemplateProcessing(f'{begin} $A', f'{begin} $A $B', [pair])
  roles = {'pad_token': '<pad>', 'bos_token': '<s>', 'eos_token': '</s>'}
  return hf.PreTrainedTokenizerFast(tokenizer_object=library, **roles, extra_special_tokens=specials)


CHAT = (
  "{% for message in messages %}{{ message['role'] | upper + ' : ' }}"
  "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image> \n ' }}"
  '{% endfor %}'
  "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] + ' ' }}"
  "{% endfor %}{% if message['role'] == 'assistant' %}{{ '</s>' }}{% endif %}{% endfor %}"
  "{% if add_generation_prompt %}{{ 'ASSISTANT : ' }}{% endif %}"
)


def llava(hf):
  """(model, processor) of LLaVA 1.5."""
  words = tokenizer(hf, {'image_token': '<image>'}, '<s>')
  vision = hf.CLIPVisionConfig(**VISION, projection_dim=8)
  cfg = hf.LlavaConfig(
    text_config=hf.LlamaConfig(**TEXT), vision_config=vision, image_token_index=words.image_token_id
  )
  side = {'height': 15, 'width': 15}
  pictures = hf.CLIPImageProcessorPil(size={'shortest_edge': 15}, crop_size=side)
  processor = hf.LlavaProcessor(
    pictures,
    words,
    patch_size=5,
    vision_feature_select_strategy='default',
    num_additional_image_tokens=1,
    chat_template=CHAT,
  )
  return hf.LlavaForConditionalGeneration(cfg), processor


def llava_next(hf):
  """(model, processor) of LLaVA-NeXT: tiles of the best of some sizes, and a newline after each row."""
  words = tokenizer(hf, {'image_token': '<image>'}, '<s>')
  sizes = [[15, 30], [30, 15], [30, 30], [45, 15]]
  cfg = hf.LlavaNextConfig(
    text_config=hf.LlamaConfig(**TEXT | {'max_position_embeddings': 128}),
    vision_config=hf.CLIPVisionConfig(**VISION, projection_dim=8),
    image_token_index=words.image_token_id,
    image_grid_pinpoints=sizes,
  )
  side = {'height': 15, 'width': 15}
  pictures = hf.LlavaNextImageProcessorPil(
    size={'shortest_edge': 15}, crop_size=side, image_grid_pinpoints=sizes
  )
  processor = hf.LlavaNextProcessor(
    pictures, words, patch_size=5, vision_feature_select_strategy='default', num_additional_image_tokens=1
  )
  return hf.LlavaNextForConditionalGeneration(cfg), processor


def llava_onevision(hf):
  """(model, processor) of LLaVA-OneVision: SigLIP's last layer, and vectors of at most two tiles."""
  words = tokenizer(hf, {'image_token': '<image>', 'video_token': '<video>'})
  sizes = [[15, 15], [15, 30], [30, 15], [30, 30], [45, 30], [15, 45]]
  text = TEXT | {'num_key_value_heads': 1, 'max_position_embeddings': 128}
  cfg = hf.LlavaOnevisionConfig(
    text_config=hf.Qwen2Config(**text, bos_token_id=1, eos_token_id=2),
    vision_config=hf.SiglipVisionConfig(**VISION, vision_use_head=False),
    image_token_index=words.image_token_id,
    video_token_index=words.video_token_id,
    image_grid_pinpoints=sizes,
    vision_aspect_ratio='anyres_max_2',
  )
  pictures = hf.LlavaOnevisionImageProcessorPil(size={'height': 15, 'width': 15}, image_grid_pinpoints=sizes)
  processor = without_videos(hf.LlavaOnevisionProcessor)(
    pictures,
    words,
    num_image_tokens=9,
    vision_feature_select_strategy='full',
    vision_aspect_ratio='anyres_max_2',
  )
  return hf.LlavaOnevisionForConditionalGeneration(cfg), processor


def paligemma(hf):
  """(model, processor) of PaliGemma: SigLIP and Gemma."""
  words = tokenizer(hf, {'image_token': '<image>'})
  sizes = TEXT | {'vocab_size': 1200}  # the processor adds 1152 tokens of places in a picture
  text = hf.GemmaConfig(**sizes, head_dim=8, pad_token_id=0, bos_token_id=1, eos_token_id=2)
  cfg = hf.PaliGemmaConfig(
    text_config=text,
    vision_config=hf.SiglipVisionConfig(**VISION),
    image_token_index=words.image_token_id,
    projection_dim=24,
    hidden_size=24,
    vocab_size=sizes['vocab_size'],
  )
  pictures = hf.SiglipImageProcessorPil(size={'height': 15, 'width': 15}, image_seq_length=9)
  pictures.image_seq_length = 9
  return hf.PaliGemmaForConditionalGeneration(cfg), hf.PaliGemmaProcessor(pictures, words)


def gemma3(hf):
  """(model, processor) of Gemma 3 with pictures: SigLIP, four patches in a place."""
  specials = {'boi_token': '<boi>', 'image_token': '<image>', 'eoi_token': '<eoi>'}
  words = tokenizer(hf, specials, '<s>')
  layers = ['sliding_attention', 'full_attention']
  ids = {'pad_token_id': 0, 'bos_token_id': 1, 'eos_token_id': 2}
  text = hf.Gemma3TextConfig(**TEXT, **ids, head_dim=8, sliding_window=4, layer_types=layers)
  cfg = hf.Gemma3Config(
    text_config=text,
    vision_config=hf.SiglipVisionConfig(**VISION | {'image_size': 20}),
    image_token_index=words.image_token_id,
    boi_token_index=words.boi_token_id,
    eoi_token_index=words.eoi_token_id,
    mm_tokens_per_image=4,
  )
  pictures = hf.Gemma3ImageProcessorPil(size={'height': 20, 'width': 20})
  processor = hf.Gemma3Processor(pictures, words, image_seq_length=4)
  return hf.Gemma3ForConditionalGeneration(cfg), processor


def idefics3(hf, name='Idefics3'):
  """(model, processor) of Idefics3 or SmolVLM: tiles of pictures, four patches side by side in a place."""
  around = {'fake_image_token': '<fake_token_around_image>', 'global_image_token': '<global-img>'}
  tiles = {f'row_{r}_{c}': f'<row_{r}_col_{c}>' for r in (1, 2) for c in (1, 2)}
  specials = {'image_token': '<image>', 'end_of_utterance_token': '<end>'} | around | tiles
  words = tokenizer(hf, specials, '<s>')
  vision = {'image_size': 20, 'num_hidden_layers': 2}
  cfg = getattr(hf, f'{name}Config')(
    text_config=hf.LlamaConfig(**TEXT, pad_token_id=0),
    vision_config=VISION | vision,
    image_token_id=words.image_token_id,
    scale_factor=2,
  )
  pictures = hf.Idefics3ImageProcessorPil(size={'longest_edge': 40}, max_image_size={'longest_edge': 20})
  model = getattr(hf, f'{name}ForConditionalGeneration')(cfg)
  return model, hf.Idefics3Processor(pictures, words, image_seq_len=4)


def smolvlm(hf):
  """SmolVLM with the processor of Idefics3, which prepares pictures the same way and needs no package."""
  return idefics3(hf, 'SmolVLM')


def qwen2_audio(hf):
  """(model, processor) of Qwen2-Audio: Whisper's encoder with means of two, and Qwen2."""
  specials = {'audio_token': '<audio>', 'audio_bos_token': '<begin>', 'audio_eos_token': '<end>'}
  words = tokenizer(hf, specials)
  sound = hf.Qwen2AudioEncoderConfig(
    d_model=12,
    encoder_layers=2,
    encoder_attention_heads=3,
    encoder_ffn_dim=20,
    num_mel_bins=16,
    max_source_positions=50,  # a second
  )
  text = hf.Qwen2Config(**TEXT, bos_token_id=1, eos_token_id=2)
  cfg = hf.Qwen2AudioConfig(audio_config=sound, text_config=text, audio_token_index=words.audio_token_id)
  extractor = hf.WhisperFeatureExtractor(feature_size=16, chunk_length=1)
  return hf.Qwen2AudioForConditionalGeneration(cfg), hf.Qwen2AudioProcessor(extractor, words)


def qwen2_vl(hf, name='Qwen2VL', **vision):
  """(model, processor) of Qwen2-VL: pictures of any size, squares of four patches, M-RoPE."""
  specials = {'image_token': '<image>', 'video_token': '<video>', 'begin': '<begin>', 'end': '<end>'}
  words = tokenizer(hf, specials)
  text = {'bos_token_id': 1, 'eos_token_id': 2, 'num_key_value_heads': 1, 'max_position_embeddings': 128}
  text['rope_parameters'] = {'rope_type': 'default', 'rope_theta': 1e4, 'mrope_section': [1, 2, 1]}
  vision = vision or {'embed_dim': 16, 'hidden_size': 24, 'mlp_ratio': 2}
  cfg = getattr(hf, f'{name}Config')(
    text_config=TEXT | text,
    vision_config={'depth': 3, 'num_heads': 2, 'patch_size': 3} | vision,
    image_token_id=words.image_token_id,
    video_token_id=words.video_token_id,
  )
  pictures = hf.Qwen2VLImageProcessorPil(size={'shortest_edge': 72, 'longest_edge': 900}, patch_size=3)
  processor = without_videos(getattr(hf, f'{name}Processor'))(pictures, words)
  return getattr(hf, f'{name}ForConditionalGeneration')(cfg), processor


def qwen2_5_vl(hf):
  """(model, processor) of Qwen2.5-VL: a gated MLP, and windows of 2 x 2 squares in two layers."""
  sizes = {'hidden_size': 16, 'out_hidden_size': 24, 'intermediate_size': 20}
  return qwen2_vl(hf, 'Qwen2_5_VL', **sizes, window_size=12, fullatt_block_indexes=[1])


def without_videos(processor):
  """A class of processors without that of videos, which needs torchvision."""

  class OfPictures(processor):
    def __init__(
      self,
      image_processor=None,
      tokenizer=None,
      chat_template=None,
      num_image_tokens=None,
      vision_feature_select_strategy=None,
      vision_aspect_ratio=None,
    ):
      own = {
        'num_image_tokens': num_image_tokens,
        'vision_feature_select_strategy': vision_feature_select_strategy,
        'vision_aspect_ratio': vision_aspect_ratio,
      }
      own = {name: value for name, value in own.items() if value is not None}
      super().__init__(image_processor, tokenizer, chat_template=chat_template, **own)

  OfPictures.__name__ = processor.__name__
  return OfPictures


def voxtral(hf):
  """(model, processor) of Voxtral: Whisper's encoder, two outputs side by side, and Llama."""
  words = tokenizer(hf, {'audio_token': '[AUDIO]', 'begin': '[BEGIN]'}, '<s>')
  sound = {'hidden_size': 12, 'num_hidden_layers': 2, 'num_attention_heads': 3, 'intermediate_size': 24}
  cfg = hf.VoxtralConfig(
    audio_config=hf.VoxtralEncoderConfig(**sound, num_mel_bins=16, max_source_positions=50),  # a second
    text_config=hf.LlamaConfig(**TEXT | {'max_position_embeddings': 128}),
    audio_token_id=words.audio_token_id,
  )
  extractor = hf.WhisperFeatureExtractor(feature_size=16, chunk_length=1)
  return hf.VoxtralForConditionalGeneration(cfg), VoxtralProcessor(extractor, words)


class VoxtralProcessor:
  """That of transformers for one sound, but for its words, which need mistral_common."""

  def __init__(self, feature_extractor, words):
    self.feature_extractor, self.words = feature_extractor, words

  def __call__(self, text, audio, sampling_rate, return_tensors):
    """Return ids with 25 places for each second, and log-mel bands."""
    import transformers

    options = {'sampling_rate': sampling_rate, 'padding': True, 'truncation': False}
    features = transformers.VoxtralProcessor._retrieve_input_features(
      self, audio, 100, **options, pad_to_multiple_of=16_000, return_tensors=return_tensors
    )
    text = text.replace('[AUDIO]', '[AUDIO]' * 25 * len(features))
    ids = self.words(text, return_tensors=return_tensors)['input_ids']
    return {'input_ids': ids, 'input_features': features}

  def save_pretrained(self, folder):
    """Write both parts."""
    self.feature_extractor.save_pretrained(folder)
    self.words.save_pretrained(folder)

  @classmethod
  def from_pretrained(cls, folder):
    """Read what `save_pretrained` wrote."""
    import transformers

    parts = transformers.WhisperFeatureExtractor, transformers.PreTrainedTokenizerFast
    return cls(*(part.from_pretrained(folder) for part in parts))


def sounds(seed=0, lengths=(15_999, 7_000, 641, 960)):
  """Random sounds float32 of several lengths in samples."""
  rng = np.random.default_rng(seed)
  return [rng.uniform(-0.5, 0.5, length).astype(np.float32) for length in lengths]


def chameleon(hf, **text):
  """(model, processor) of Chameleon: pictures are 16 ids of the vocabulary, whose codes are in no order."""
  codes = np.random.default_rng(3).permutation(30)
  names = [f'IMGIMG{"".join("ABCDEFGHIJ"[int(digit)] for digit in str(code))}Z' for code in codes]
  specials = {'image_token': '<image>', 'boi_token': '<racm3:break>', 'eoi_token': '<eoss>'}
  specials |= {f'code{code}': name for code, name in zip(codes, names, strict=True)}
  words = tokenizer(hf, specials | {'sep': '<reserved08706>'}, '<s>')
  words.sep_token = '<reserved08706>'
  vqgan = {'base_channels': 64, 'channel_multiplier': [1, 2], 'num_res_blocks': 1, 'num_embeddings': 30}
  vqgan |= {'embed_dim': 6, 'latent_channels': 7, 'resolution': 8}
  sizes = TEXT | {'vocab_size': 64, 'num_key_value_heads': 1} | text
  cfg = hf.ChameleonConfig(**sizes, vq_config=vqgan, vocabulary_map=words.get_vocab())
  pictures = hf.ChameleonImageProcessorPil(
    size={'shortest_edge': 11}, crop_size={'height': 8, 'width': 8}, rescale_factor=0.0078
  )
  processor = hf.ChameleonProcessor(pictures, words, image_seq_length=16)
  return hf.ChameleonForConditionalGeneration(cfg), processor


FAMILIES = {
  'chameleon': chameleon,
  'llava': llava,
  'llava_next': llava_next,
  'llava_onevision': llava_onevision,
  'paligemma': paligemma,
  'gemma3': gemma3,
  'qwen2_audio': qwen2_audio,
  'voxtral': voxtral,
  'qwen2_vl': qwen2_vl,
  'qwen2_5_vl': qwen2_5_vl,
  'idefics3': idefics3,
  'smolvlm': smolvlm,
}


def pictures(seed=0, sizes=((15, 15), (40, 23), (19, 31), (9, 12), (64, 64))):
  """Random pictures uint8 [Y, X, 3] of several sizes."""
  rng = np.random.default_rng(seed)
  return [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]


def write(hf, family, folder, **changes):
  """Write a model with random values -> (model, processor); changes: keys of config.json."""
  return fill(*FAMILIES[family](hf), folder, changes)


def fill(model, processor, folder, changes=()):
  """Give a model random values and write it with its processor -> both; changes: keys of config.json."""
  import torch

  torch.manual_seed(0)
  with torch.no_grad():
    for name, p in model.named_parameters():
      p.copy_(0.2 * torch.randn_like(p) + (1.0 if p.ndim == 1 and name.endswith('weight') else 0.0))
  model.save_pretrained(folder)
  processor.save_pretrained(folder)
  if changes:
    path = folder / 'config.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
  return model.eval(), processor
