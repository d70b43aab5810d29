"""The closed list of words a verb may ask for: argument name -> what it is, with its shape.

Where methods of one kind need different things, the verb's signature says what: an argument without a default is a need,
one with a default is a wish. Engines supply words by these names and no others.
"""

WORDS: dict[str, str] = {
    # token prediction
    "logits": "scores of the next (or the masked) token [batch, token, vocabulary]",
    "labels": "ids to predict, aligned with logits, -100 where nothing is asked [batch, token]",
    "answer_mask": "1 where the label belongs to the assistant's own words, else 0 [batch, token]; needs conversations",
    "items": "how many predictions (tokens, pairs or rows) the whole optimizer step holds, over all its micro-batches: scalar",
    # preference pairs; log-probabilities are sums over the answer's tokens
    "chosen_logps": "log-probability of the preferred answer under the model [pair]; needs preference data",
    "rejected_logps": "log-probability of the rejected answer under the model [pair]",
    "ref_chosen_logps": "log-probability of the preferred answer under the frozen start model [pair]",
    "ref_rejected_logps": "log-probability of the rejected answer under the frozen start model [pair]",
    "chosen_tokens": "length of the preferred answer in tokens [pair]",
    "rejected_tokens": "length of the rejected answer in tokens [pair]",
    # a teacher's view, stored sparsely
    "teacher_ids": "ids of the teacher's K likeliest tokens [batch, token, K]; needs a teacher",
    "teacher_logprobs": "the teacher's log-probabilities of those tokens at temperature 1 [batch, token, K]",
    # the learner itself
    "trainable": "the weights that learn, by name: {name: tensor}",
    "angles": "angle between the changes that two models made to a column of a weight, by the trainable's name: {name: [pair, column]}",
    # checkpoints, a tensor or a chunk of it at a time, in fp32
    "base": "the weights that all tuned models started from [*shape]",
    "tuned": "the weights of each model [model, *shape]",
    "seen": "what settle made of the looks, which are added up over the chunks of the tensor; by default one tensor per look",
    "generator": "numpy random generator of this chunk",
    # adapters
    "layer": "where the adapter stands: the frozen layer with the widths of its input and output (model.roles.Site)",
    "common": "modules that the adapter shares between its layers, empty at first: {name: module}",
    # embeddings
    "anchors": "embeddings of the first texts [row, width]; needs pairs of texts",
    "positives": "embeddings of the texts that belong to them, row by row [row, width]",
    "negatives": "embeddings of texts that do not belong to them [row, width]",
    # domains under shift (engines/shift): batches with x [row, *shape], y [row], domain [row], rows [row]
    "learner": "what learns: features, head, the method's parts, memory, progress, generator (engines.shift.Learner)",
    "source": "a batch of every labelled source domain, domain after domain",
    "domains": "the same where there is no target: a batch of every labelled domain, domain after domain",
    "target": "a batch of the target without labels (y is None)",
    "labelled": "rows of the target whose labels were asked for so far, a batch of them; None before the first query",
    "validation": "all held-out rows of the labelled domains, a batch of them; None where nothing was held out",
    "replay": "rows of earlier tasks from the memory, a batch of them; None in the first task",
    "pool": "all unlabelled rows of the target that may still be asked for",
    "budget": "how many labels may be asked for in this round",
    "x": "a batch of a stream, without labels [row, *shape]",
}
