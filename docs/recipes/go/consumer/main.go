// Ships each order once, however often its message comes, and acknowledges nothing that failed.
//
//	consumer DATABASE_URL BOOTSTRAP_SERVERS TOPIC GROUP
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kgo"
)

const (
	backoffMin = 100 * time.Millisecond
	backoffMax = 30 * time.Second
)

// ship is the handler. Its error rolls everything back, and the message comes again.
func ship(ctx context.Context, tx pgx.Tx, payload []byte) error {
	var placed struct {
		Order       int64  `json:"order"`
		AmountCents *int64 `json:"amount_cents"`
	}
	if err := json.Unmarshal(payload, &placed); err != nil {
		return err
	}
	_, err := tx.Exec(ctx, "insert into shipment values ($1, $2)", placed.Order, placed.AmountCents)
	return err
}

func handleOnce(ctx context.Context, pool *pgxpool.Pool, record *kgo.Record) error {
	return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		var fresh bool
		err := tx.QueryRow(ctx, `
			select inbox.claim(consumer => 'shipping', id => $1, topic => $2, partition => $3, record_offset => $4,
			                   correlation_id => $5)`,
			header(record, "id"), record.Topic, record.Partition, record.Offset, header(record, "correlation-id")).Scan(&fresh)
		if err != nil || !fresh {
			return err
		}
		return ship(ctx, tx, record.Value)
	})
}

// header returns the first one of that name: the relay's own comes before the intent's.
func header(record *kgo.Record, name string) *string {
	for _, header := range record.Headers {
		if header.Key == name {
			value := string(header.Value)
			return &value
		}
	}
	return nil
}

func text(value *string) string {
	if value == nil {
		return "none"
	}
	return *value
}

// stopped is a partition that waits at a record that failed.
type stopped struct {
	attempts int
	due      time.Time
}

func consume(ctx context.Context, client *kgo.Client, pool *pgxpool.Pool, topic string) error {
	waiting := map[int32]*stopped{}
	for {
		for partition, stopped := range waiting {
			if !stopped.due.After(time.Now()) {
				client.ResumeFetchPartitions(map[string][]int32{topic: {partition}})
			}
		}
		soon, cancel := context.WithTimeout(ctx, backoffMin)
		fetches := client.PollFetches(soon)
		cancel()
		if fetches.IsClientClosed() {
			return nil
		}
		fetches.EachPartition(func(fetched kgo.FetchTopicPartition) {
			partition := fetched.Partition
			for _, record := range fetched.Records {
				err := handleOnce(ctx, pool, record)
				if err == nil {
					delete(waiting, partition)
					err = client.CommitRecords(ctx, record)
					if err != nil {
						log.Printf("not acknowledged, so it comes again: %v", err)
					}
					continue
				}
				// Its partition waits here; the others go on.
				failed := waiting[partition]
				if failed == nil {
					failed = &stopped{}
					waiting[partition] = failed
				}
				failed.attempts++
				failed.due = time.Now().Add(min(backoffMin<<min(failed.attempts-1, 20), backoffMax))
				client.PauseFetchPartitions(map[string][]int32{topic: {partition}})
				client.SetOffsets(map[string]map[int32]kgo.EpochOffset{topic: {partition: {Epoch: -1, Offset: record.Offset}}})
				fmt.Fprintf(os.Stderr, "not handled: %s/%d@%d id=%s correlation_id=%s attempt=%d: %v\n", topic, partition,
					record.Offset, text(header(record, "id")), text(header(record, "correlation-id")), failed.attempts, err)
				return
			}
		})
	}
}

func main() {
	ctx := context.Background()
	databaseURL, bootstrapServers, topic, group := os.Args[1], os.Args[2], os.Args[3], os.Args[4]
	pool, err := pgxpool.New(ctx, databaseURL)
	if err != nil {
		log.Fatal(err)
	}
	client, err := kgo.NewClient(
		kgo.SeedBrokers(strings.Split(bootstrapServers, ",")...),
		kgo.ConsumerGroup(group),
		kgo.ConsumeTopics(topic),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.DisableAutoCommit(),
		// A fetch that finds nothing waits this long, and a partition that is to go on waits with it (default: 5 s).
		kgo.FetchMaxWait(2*backoffMin),
	)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	if err := consume(ctx, client, pool, topic); err != nil {
		log.Fatal(err)
	}
}
