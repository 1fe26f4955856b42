"""Generate random tokens, with and without a constraint to the task's language, and print the rewards."""

import gymnasium as gym

import text_gym  # noqa: F401 - registers TextGen-v0


def play(title: str, episodes: int = 3, **arguments: object) -> float:
    """Play episodes with random tokens that the action mask allows, and return the mean reward."""
    print(title)
    env = gym.make("TextGen-v0", render_mode="human", **arguments)
    env.action_space.seed(0)
    total = 0.0
    for _ in range(episodes):
        _, info = env.reset()
        done = False
        while not done:
            action = env.action_space.sample(info["action_mask"])
            _, reward, terminated, truncated, info = env.step(action)
            done = terminated or truncated
            total += float(reward)
    env.close()
    return total / episodes


if __name__ == "__main__":
    play("Random tokens:")
    play("\nRandom tokens that the grammar allows:", constraint="valid")
    play("\nRandom answers to questions:", task="answers")
