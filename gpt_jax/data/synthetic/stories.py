"""Short stories with a question whose answer follows from one sentence of them, or from two.

Data for question answering that need no files and whose right answer is known. They are like the
first two bAbI tasks (Weston et al. 2015) and not them: figures cannot be compared. Every story is
a function of its number and the seed alone.
"""

import random
import zlib
from collections.abc import Iterator

PEOPLE = ('Anna', 'Ben', 'Carla', 'David')
PLACES = ('attic', 'bathroom', 'cellar', 'garden', 'hall', 'kitchen')
THINGS = ('ball', 'book', 'cup')
SENTENCES = (3, 8)  # fewest and most of a story


class World:
  """Who and what is where."""

  def __init__(self, rng, facts):
    self.rng, self.facts = rng, facts
    self.place, self.holder = {}, {}  # of a person; of a thing: a person, or the place it lies in

  def where(self, thing):
    """The place of a thing that was taken before."""
    holder = self.holder[thing]
    return self.place.get(holder, holder)

  def next(self):
    """Something happens -> the sentence that says it."""
    rng, who = self.rng, self.rng.choice(PEOPLE)
    if self.facts == 2 and who in self.place and rng.random() < 0.5:
      in_hand = [thing for thing in THINGS if self.holder.get(thing) == who]
      if in_hand and rng.random() < 0.4:
        thing = rng.choice(in_hand)
        self.holder[thing] = self.place[who]
        return f'{who} left the {thing}.'
      near = [t for t in THINGS if t not in in_hand and self.is_near(t, self.place[who])]
      if near:
        thing = rng.choice(near)
        self.holder[thing] = who
        return f'{who} took the {thing}.'
    self.place[who] = rng.choice([place for place in PLACES if place != self.place.get(who)])
    return f'{who} went to the {self.place[who]}.'

  def is_near(self, thing, place):
    """Whether a thing that nobody holds lies here, or was never seen and so may."""
    return self.holder.get(thing, place) == place


def record(number: int, seed: int = 0) -> dict:
  """{story, question, answer, interview, facts, part}; even numbers ask for a person, odd ones for a thing.

  interview: all questions that the story answers, each with its answer. part: 0 to 9, the same for equal
  stories, to keep splits apart.
  """
  rng, facts = random.Random(f'{seed} {number}'), 1 + number % 2
  world, sentences, wanted = World(rng, facts), [], rng.randint(*SENTENCES)
  known = world.place if facts == 1 else world.holder
  while len(sentences) < wanted or not known:
    sentences.append(world.next())
  answers = {f'Where is {who}?': place for who, place in world.place.items()}
  if facts == 2:
    answers |= {f'Where is the {thing}?': world.where(thing) for thing in world.holder}
  what = rng.choice(sorted(known))
  story, question = ' '.join(sentences), f'Where is {what}?' if facts == 1 else f'Where is the {what}?'
  interview = ' '.join(f'{asked} {answers[asked]}' for asked in rng.sample(sorted(answers), len(answers)))
  part = zlib.crc32(story.encode()) % 10
  fields = {'story': story, 'question': question, 'answer': answers[question], 'interview': interview}
  return fields | {'facts': facts, 'part': part}


def records(count: int, seed: int = 0) -> Iterator[tuple[str, dict]]:
  """(where, record) of so many stories."""
  return ((f'story {number}', record(number, seed)) for number in range(count))
