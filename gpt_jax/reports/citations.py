"""BibTeX entries of what a study used: the methods that its configs choose, and the software."""

from gpt_jax.runs import records

# config key: {value: entry}; a value of '*' is any that is not 0, False or ''
CHOICES = {
  'optim.name': {
    'adamw': 'loshchilov2019',
    'lion': 'chen2023',
    'adafactor': 'shazeer2018',
    'muon': 'jordan2024',
  },
  'model.positions': {
    'rope': 'su2021',
    'mrope': 'wang2024',
    'alibi': 'press2022',
    'sinusoidal': 'vaswani2017',
  },
  'model.norm': {'rmsnorm': 'zhang2019', 'zero_centered_rmsnorm': 'zhang2019', 'layernorm': 'ba2016'},
  'model.mlp': {'swiglu': 'shazeer2020', 'geglu': 'shazeer2020', 'relu2': 'so2021', 'gelu': 'hendrycks2016'},
  'model.qk_norm': {'*': 'henry2020'},
  'model.experts': {'*': 'shazeer2017'},
  'model.mup_base': {'*': 'yang2022'},
  'adapter.rank': {'*': 'hu2022'},
  'loss.z_loss': {'*': 'chowdhery2023'},
  'train.job': {'dpo': 'rafailov2023', 'grpo': 'shao2024', 'distil': 'hinton2015'},
  'image.kind': {'fsq': 'mentzer2024', 'vq': 'oord2017'},
}
ALWAYS = ('radford2019', 'holm1979', 'bradbury2018')  # the model, the correction, the software
ENTRIES = {  # key: (authors, title, year, where)
  'radford2019': (
    'Radford, Alec and Wu, Jeffrey and Child, Rewon and Luan, David and Amodei, Dario and Sutskever, Ilya',
    'Language Models are Unsupervised Multitask Learners',
    2019,
    'OpenAI',
  ),
  'holm1979': (
    'Holm, Sture',
    'A Simple Sequentially Rejective Multiple Test Procedure',
    1979,
    'Scandinavian Journal of Statistics 6(2), 65--70',
  ),
  'bradbury2018': (
    'Bradbury, James and Frostig, Roy and Hawkins, Peter and Johnson, Matthew James and others',
    '{JAX}: Composable Transformations of {Python+NumPy} Programs',
    2018,
    'http://github.com/jax-ml/jax',
  ),
  'loshchilov2019': (
    'Loshchilov, Ilya and Hutter, Frank',
    'Decoupled Weight Decay Regularization',
    2019,
    'ICLR',
  ),
  'chen2023': (
    'Chen, Xiangning and Liang, Chen and Huang, Da and Real, Esteban and others',
    'Symbolic Discovery of Optimization Algorithms',
    2023,
    'NeurIPS',
  ),
  'shazeer2018': (
    'Shazeer, Noam and Stern, Mitchell',
    'Adafactor: Adaptive Learning Rates with Sublinear Memory Cost',
    2018,
    'ICML',
  ),
  'jordan2024': (
    'Jordan, Keller and Jin, Yuchen and Boza, Vlado and You, Jiacheng and others',
    'Muon: An Optimizer for Hidden Layers in Neural Networks',
    2024,
    'https://kellerjordan.github.io/posts/muon/',
  ),
  'su2021': (
    'Su, Jianlin and Lu, Yu and Pan, Shengfeng and Murtadha, Ahmed and Wen, Bo and Liu, Yunfeng',
    '{RoFormer}: Enhanced Transformer with Rotary Position Embedding',
    2021,
    'arXiv:2104.09864',
  ),
  'wang2024': (
    'Wang, Peng and Bai, Shuai and Tan, Sinan and others',
    "{Qwen2-VL}: Enhancing Vision-Language Model's Perception of the World at Any Resolution",
    2024,
    'arXiv:2409.12191',
  ),
  'press2022': (
    'Press, Ofir and Smith, Noah A. and Lewis, Mike',
    'Train Short, Test Long: Attention with Linear Biases Enables Input Length Extrapolation',
    2022,
    'ICLR',
  ),
  'vaswani2017': (
    'Vaswani, Ashish and Shazeer, Noam and Parmar, Niki and Uszkoreit, Jakob and others',
    'Attention Is All You Need',
    2017,
    'NeurIPS',
  ),
  'zhang2019': ('Zhang, Biao and Sennrich, Rico', 'Root Mean Square Layer Normalization', 2019, 'NeurIPS'),
  'ba2016': (
    'Ba, Jimmy Lei and Kiros, Jamie Ryan and Hinton, Geoffrey E.',
    'Layer Normalization',
    2016,
    'arXiv:1607.06450',
  ),
  'shazeer2020': ('Shazeer, Noam', '{GLU} Variants Improve Transformer', 2020, 'arXiv:2002.05202'),
  'so2021': (
    "So, David R. and Ma{\\'n}ke, Wojciech and Liu, Hanxiao and Dai, Zihang and others",
    'Primer: Searching for Efficient Transformers for Language Modeling',
    2021,
    'NeurIPS',
  ),
  'hendrycks2016': (
    'Hendrycks, Dan and Gimpel, Kevin',
    'Gaussian Error Linear Units ({GELUs})',
    2016,
    'arXiv:1606.08415',
  ),
  'henry2020': (
    'Henry, Alex and Dachapally, Prudhvi Raj and Pawar, Shubham and Chen, Yuxuan',
    'Query-Key Normalization for Transformers',
    2020,
    'Findings of EMNLP',
  ),
  'shazeer2017': (
    'Shazeer, Noam and Mirhoseini, Azalia and Maziarz, Krzysztof and others',
    'Outrageously Large Neural Networks: The Sparsely-Gated Mixture-of-Experts Layer',
    2017,
    'ICLR',
  ),
  'yang2022': (
    'Yang, Greg and Hu, Edward J. and Babuschkin, Igor and others',
    'Tensor Programs {V}: Tuning Large Neural Networks via Zero-Shot Hyperparameter Transfer',
    2022,
    'arXiv:2203.03466',
  ),
  'hu2022': (
    'Hu, Edward J. and Shen, Yelong and Wallis, Phillip and others',
    '{LoRA}: Low-Rank Adaptation of Large Language Models',
    2022,
    'ICLR',
  ),
  'chowdhery2023': (
    'Chowdhery, Aakanksha and Narang, Sharan and Devlin, Jacob and others',
    '{PaLM}: Scaling Language Modeling with Pathways',
    2023,
    'JMLR 24(240)',
  ),
  'rafailov2023': (
    'Rafailov, Rafael and Sharma, Archit and Mitchell, Eric and others',
    'Direct Preference Optimization: Your Language Model is Secretly a Reward Model',
    2023,
    'NeurIPS',
  ),
  'shao2024': (
    'Shao, Zhihong and Wang, Peiyi and Zhu, Qihao and others',
    '{DeepSeekMath}: Pushing the Limits of Mathematical Reasoning in Open Language Models',
    2024,
    'arXiv:2402.03300',
  ),
  'hinton2015': (
    'Hinton, Geoffrey and Vinyals, Oriol and Dean, Jeff',
    'Distilling the Knowledge in a Neural Network',
    2015,
    'arXiv:1503.02531',
  ),
  'mentzer2024': (
    'Mentzer, Fabian and Minnen, David and Agustsson, Eirikur and Tschannen, Michael',
    'Finite Scalar Quantization: {VQ-VAE} Made Simple',
    2024,
    'ICLR',
  ),
  'oord2017': (
    'van den Oord, Aaron and Vinyals, Oriol and Kavukcuoglu, Koray',
    'Neural Discrete Representation Learning',
    2017,
    'NeurIPS',
  ),
}


def keys_of(config):
  """Return the entries of what a config chooses."""
  flat = records.flatten(config)
  chosen = ((flat.get(key), table) for key, table in CHOICES.items())
  return [key for value, table in chosen if (key := table.get(str(value)) or (value and table.get('*')))]


def format_bibtex(configs):
  """Return the entries of what these configs (nested dicts) choose, and of what every study uses."""
  keys = dict.fromkeys([*ALWAYS, *(key for config in configs for key in keys_of(config))])
  entry = '@misc{{{key},\n  author = {{{0}}},\n  title = {{{1}}},\n  year = {{{2}}},\n  note = {{{3}}}\n}}\n'
  return '\n'.join(entry.format(*ENTRIES[key], key=key) for key in sorted(keys))
