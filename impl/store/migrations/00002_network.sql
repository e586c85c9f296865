-- What a sandbox may reach, beside allow_internet: a JSON object with the lists allowOut and denyOut.

-- +goose Up
ALTER TABLE sandboxes ADD COLUMN network TEXT NOT NULL DEFAULT '{}';

-- +goose Down
ALTER TABLE sandboxes DROP COLUMN network;
