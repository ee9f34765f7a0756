"""From texts, answers and chats to batches: tokens and what counts, packing, an order that resumes at the exact example."""
